"""The probe finds what was planted: shares of the variance, what states predict, and what choosing by them keeps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from unrolled import VOCABULARY, tiny_model, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError
from drllm_adapter.decisions import passes
from drllm_adapter.demo import BASE
from drllm_adapter.evaluation.probe import Measurements, analyse, measure
from drllm_adapter.evaluation.probe.report import BY_KIND, BY_LOT, BY_PROMPT, HINDSIGHT, STATIC
from drllm_adapter.scoring.references import add_references
from drllm_adapter.scoring.shared_prefix import SharingScorer
from drllm_adapter.tasks import Prompt, load_questions
from drllm_adapter.workflow import probe_model
from drllm_adapter.workflow.export import export_path

PROMPTS, BLOCKS, DEEPEST = 240, 12, 6
WORDS = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
WORDS.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=WORDS, unk_token="w0", pad_token="w0")


def planted(
    block: float, prompt: float, kind: float, rest: float, *, kinds: int = 6, seen: bool = True, seed: int = 0
) -> Measurements:
    """Log KL of given variances (of 100), and prompts that bear 0 to 6 skips: as many as the first two states tell.

    With `seen` false the states tell nothing.
    """
    random = np.random.default_rng(seed)
    of_kind = np.arange(PROMPTS) % kinds
    states = random.normal(size=(BLOCKS, PROMPTS, 20)).astype(np.float32)
    told = random.normal(size=PROMPTS)
    if seen:
        states[:, :, 0] = told
        states[:, :, 1] = told + 0.1 * states[:, :, 1]

    def unit(values: np.ndarray) -> np.ndarray:
        return values / max(1e-9, np.sqrt((values**2).mean()))

    by_kind = random.normal(size=(kinds, BLOCKS))
    by_kind -= by_kind.mean(axis=0)
    by_kind -= by_kind.mean(axis=1, keepdims=True)
    blocks = np.linspace(-1, 1, BLOCKS)
    log_kl = -2 + sum(
        np.sqrt(share / 100) * unit(values)
        for share, values in (
            (block, blocks + 0 * told[:, None]), (prompt, told[:, None] + 0 * blocks),
            (kind, by_kind[of_kind]), (rest, random.normal(size=(PROMPTS, BLOCKS))),
        )
    )  # fmt: skip
    # A prompt keeps everything up to what it bears, and from there on loses a quarter with each skip more.
    bears = np.clip(np.round(1 - 2 * told), 0, DEEPEST)
    nested = 0.75 ** np.maximum(0, np.arange(DEEPEST + 1) - bears[:, None])
    names = [f"kind{place}" for place in of_kind]
    return Measurements(names, np.exp(log_kl), np.exp(-np.exp(log_kl)), list(range(BLOCKS)), nested, states)


@pytest.mark.parametrize("shares", [(70, 15, 10, 5), (50, 0, 0, 50), (20, 60, 0, 20), (30, 10, 40, 20)])
def test_shares_of_the_variance(shares: tuple[float, float, float, float]) -> None:
    found = analyse(planted(*shares)).shares
    assert (found.block, found.prompt, found.kind, found.rest) == pytest.approx([s / 100 for s in shares], abs=0.03)


def test_chance_is_nobodys_share() -> None:
    """With four prompts a kind a quarter of what is left by chance looks like the kinds'."""
    found = analyse(planted(50, 0, 0, 50, kinds=60)).shares
    assert found.kind == pytest.approx(0, abs=0.03)
    assert found.rest == pytest.approx(0.5, abs=0.03)


def test_what_the_states_tell() -> None:
    report = analyse(planted(50, 30, 0, 20))
    assert report.by_kind is not None
    assert report.by_kind[0] == pytest.approx(0, abs=0.05)
    assert report.by_prompt[0] == pytest.approx(30 / 50, abs=0.06)
    assert report.by_prompt[1] < 30 / 50 < report.by_prompt[2]
    gain, low, high = report.gains[BY_PROMPT]
    assert 0.03 < low < gain < high
    assert gain > 0.4 * report.gains[HINDSIGHT][0]
    assert abs(report.gains[BY_KIND][0]) < 0.02
    assert report.verdict.startswith("much to gain")
    # Compared at nine tenths of the passes, all of them.
    assert [point.passes for point in report.points] == pytest.approx([round(0.9 * BLOCKS)] * len(report.points))
    assert passes(report.static_path) == round(0.9 * BLOCKS)
    assert report.static_path[0] == 0


def test_against_one_path_and_against_a_lot() -> None:
    """What skips lose is concave in their number here, so a lot between none and six beats one skip for all."""
    nested = np.repeat([[1.0, 0.6, 0.55, 0.5, 0.45, 0.4, 0.4]], PROMPTS, axis=0)
    report = analyse(replace(planted(50, 0, 0, 50), nested=nested))
    kept = {point.name: point.agreement for point in report.points}
    assert kept[STATIC] == pytest.approx(0.6)
    assert kept[BY_LOT] == kept[BY_PROMPT] == pytest.approx(1 - 0.6 / 6)
    assert report.above_static[BY_PROMPT][0] == pytest.approx(0.3)
    assert report.gains[BY_PROMPT] == pytest.approx((0, 0, 0))
    assert report.verdict.startswith("little to gain")


def test_what_may_be_luck_is_not_called_little() -> None:
    report = analyse(planted(50, 30, 0, 20))
    unsure = replace(report, gains={**report.gains, BY_PROMPT: (0.025, -0.03, 0.08)})
    assert unsure.verdict.startswith("not settled")
    # An interval of 5.5 points to each side from 240 prompts is one of 3 from 240 (5.5 / 3)**2, 807.
    assert "about 570 prompts more would tell" in unsure.verdict
    small = replace(report, gains={**report.gains, BY_PROMPT: (0.005, -0.01, 0.02)})
    assert small.verdict.startswith("little to gain")


def test_what_nothing_tells() -> None:
    report = analyse(planted(50, 30, 0, 20, seen=False))
    assert report.by_prompt[0] == pytest.approx(0, abs=0.05)
    assert report.gains[BY_PROMPT][0] < 0.01
    assert report.gains[HINDSIGHT][0] > 0.05
    assert report.verdict.startswith("little to gain")


def test_which_blocks_a_kind_needs() -> None:
    report = analyse(planted(30, 10, 40, 20))
    assert report.by_kind is not None
    assert report.by_kind[0] == pytest.approx(40 / 70, abs=0.05)
    one = analyse(planted(50, 30, 0, 20, kinds=1))
    assert one.by_kind is None
    assert set(one.gains) == {BY_PROMPT, HINDSIGHT}
    assert "kind" not in str([column.header for table in one.tables() for column in table.columns])


def test_measuring_equals_the_unrolled_model() -> None:
    base = tiny_model("llama", 4)
    scorer = SharingScorer(get_peft_model(base, DrLLMConfig()).eval(), TOKENIZER)
    texts = [" ".join(f"w{1 + (7 * n + 3 * k) % (VOCABULARY - 1)}" for k in range(2 + n % 6)) for n in range(20)]
    prompts = add_references(scorer.plain, [Prompt(text, False, (), "", "self", 5) for text in texts])
    shown: list[float] = []
    measured = measure(scorer, prompts, ["a"] * 20, most_skips=2, show=shown.append)
    assert shown == sorted(shown)
    assert shown[-1] == pytest.approx(1)
    assert measured.nested.shape == (20, 3)
    assert (measured.nested[:, 0] == 1).all()
    assert measured.order == list(np.log(np.maximum(measured.kl, 1e-4)).mean(axis=0).argsort())
    fresh = tiny_model("llama", 4)
    for place in (0, 7):
        ids = torch.tensor([[*TOKENIZER(texts[place])["input_ids"], *prompts[place].reference]])
        begin = ids.shape[1] - 6
        with torch.no_grad():
            whole = fresh(ids, output_hidden_states=True)
            own = whole.logits[0, begin:-1].double().log_softmax(-1)
            for block in range(4):
                path = [1 if other != block else 0 for other in range(4)]
                along = unrolled(fresh, path)(ids).logits[0, begin:-1].double().log_softmax(-1)
                kl = float((own.exp() * (own - along)).sum(-1).mean())
                assert measured.kl[place, block] == pytest.approx(kl, abs=1e-4)
                entering = whole.hidden_states[block][0, : begin + 1]
                states = (entering / entering.square().mean(-1, keepdim=True).sqrt()).mean(0)
                assert np.allclose(measured.states[block, place], states.numpy(), atol=1e-4)
    with pytest.raises(DrLLMError, match="at least 20 prompts"):
        measure(scorer, prompts[:19], ["a"] * 19)


def test_from_a_file_of_prompts_to_a_report(tmp_path: Path) -> None:
    asked = load_questions("khop", limit=24, with_answers=False)
    report = probe_model(str(BASE), asked, tmp_path / "probe", max_new_tokens=1, dtype="float32")
    told = json.loads((tmp_path / "probe" / "report.json").read_text())
    assert (told["mode"], told["questions"]) == ("self", {"khop": 24})
    assert told["verdict"] == report.verdict
    assert [value for value, spent in told["curves"][STATIC] if spent == 8] == [1]
    assert (tmp_path / "probe" / "probe.png").stat().st_size > 10_000
    # What a path that is the same for all keeps can be exported.
    chosen = export_path(str(BASE), tmp_path / "out", report=tmp_path / "probe")
    assert chosen.decisions == tuple(told["static_path"])
    assert "of a probe" in (tmp_path / "out" / "README.md").read_text()
