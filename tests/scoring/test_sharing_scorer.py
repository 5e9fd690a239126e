"""Shared and batched scoring against the unrolled model, and against itself in other bundles, batches and memory."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from test_scoring import BASE, BLOCKS, ROUTED, TOKENIZER, choice_prompts, log_likelihood, paths
from unrolled import tiny_model, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError
from drllm_adapter.scoring.plain import PlainSession, Scorer
from drllm_adapter.scoring.shared_prefix import SharingScorer, score_paths
from drllm_adapter.scoring.shared_prefix.packing import PackedRow, pack
from drllm_adapter.search import PathSearch, SearchConfig, search_bundle
from drllm_adapter.tasks import Prompt

LETTERS = tuple(f" w{number}" for number in range(1, 5))
CLOZE = [
    Prompt(
        " ".join(f"w{1 + (7 * n + k) % 60}" for k in range(3 + n % 5)),
        False,
        (" w1 w2 w3", f" w1 w{4 + n}", " w5", " w6 w7"),
        n % 4,
        "cloze",
        4,
    )
    for n in range(9)
]
CONFIG = SearchConfig(simulations=25, length_penalty=0.3)


def routed(model: Any) -> Any:
    return get_peft_model(model, DrLLMConfig()).eval()


def refuse(text: str) -> None:
    raise AssertionError(text)


def searched(scorer: Any, prompts: list[Prompt], bundle: int) -> list[Any]:
    """Everything tried in the search of every prompt, in bundles."""
    found = []
    for start in range(0, len(prompts), bundle):
        part = prompts[start : start + bundle]
        found += [search.paths for search in search_bundle([prompt.text for prompt in part], part, scorer, CONFIG)]
    return found


@settings(max_examples=40)
@given(pairs=st.lists(st.tuples(choice_prompts(), paths), min_size=1, max_size=6))
def test_scores_are_those_of_the_unrolled_model(pairs: list[tuple[Prompt, tuple[int, ...]]]) -> None:
    session = SharingScorer(ROUTED, TOKENIZER, notice=refuse).begin([prompt for prompt, _ in pairs])
    scores = session.score(range(len(pairs)), [path for _, path in pairs])
    for score, (prompt, path) in zip(scores, pairs, strict=True):
        model = unrolled(BASE, list(path))
        sums = torch.tensor([log_likelihood(model, prompt.text, text) for text in prompt.continuations])
        assert score.decisions == path
        assert score.probability == pytest.approx(float(sums.softmax(0)[prompt.answer]), abs=2e-4)
        if sums.sort().values.diff()[-1] > 1e-3:
            assert score.correct == (int(sums.argmax()) == prompt.answer)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("letters", [True, False])
def test_every_architecture_scores_as_the_plain_scorer_does(model_type: str, attention: str, letters: bool) -> None:
    """Those whose masks cannot be packed (windows of 6 tokens here) say so once and are scored the plain way."""
    model = routed(tiny_model(model_type, BLOCKS, attn_implementation=attention))
    prompts = [Prompt(p.text, False, LETTERS if letters else p.continuations, p.answer, p.mode, 4) for p in CLOZE]
    said: list[str] = []
    scorer = SharingScorer(model, TOKENIZER, notice=said.append)
    along = [(0, 1, 1, 2), (1, 1, 0, 1), (1, 1, 1, 1), (2, 0, 0, 1), (0, 0, 0, 1)]
    for start in (0, 4, 8):
        part = prompts[start : start + 4]
        found = scorer.begin(part).score([n for n in range(len(part)) for _ in along], along * len(part))
        plain = Scorer(model, TOKENIZER).score([prompt for prompt in part for _ in along], along * len(part))
        assert [score.probability for score in found] == pytest.approx([s.probability for s in plain], abs=2e-4)
    windows = model_type in ("qwen2", "mistral") and not letters
    assert len(said) == windows
    assert not windows or "cannot run as packed rows" in said[0]


def test_answers_that_see_each_other_are_no_matter_of_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = routed(tiny_model("llama", BLOCKS).bfloat16())
    long = tuple("".join(f" w{1 + (step * n) % 60}" for n in range(1, 13)) for step in (7, 11, 13))
    prompts = [Prompt("w1 w2 w3", False, long, 0, "cloze", 4)]
    assert not isinstance(SharingScorer(model, TOKENIZER, notice=refuse).begin(prompts), PlainSession)
    monkeypatch.setattr(PackedRow, "visible", lambda self, length: torch.ones(length, length).tril().bool())
    said: list[str] = []
    session = SharingScorer(model, TOKENIZER, notice=said.append).begin(prompts)
    assert "log-likelihoods differ" in said[0]
    assert isinstance(session, PlainSession)


def test_arguments_for_as_many_tokens_as_there_are_rows_are_not_cut_by_rows() -> None:
    """Rotary embeddings `[tokens, width]`, which all rows share, of eight rows of eight tokens."""
    base = tiny_model("llama", BLOCKS)
    model = routed(copy.deepcopy(base))
    inner = model.get_base_model().model
    inner.rotary_emb.register_forward_hook(lambda module, args, output: tuple(part[0] for part in output))
    for layer in inner.layers:
        layer.base_layer.register_forward_pre_hook(
            lambda module, args, kwargs: (
                args,
                {**kwargs, "position_embeddings": tuple(part[None] for part in kwargs["position_embeddings"])},
            ),
            with_kwargs=True,
        )
    prompts = [
        Prompt(" ".join(f"w{1 + (7 * n + k) % 60}" for k in range(8)), False, LETTERS, 0, "letter", 4) for n in range(8)
    ]
    path = (1, 0, 2, 1)
    scores = SharingScorer(model, TOKENIZER, notice=refuse).begin(prompts).score([2, 5], [path] * 2)
    expected = Scorer(routed(base), TOKENIZER).score([prompts[2], prompts[5]], [path] * 2)
    assert [score.probability for score in scores] == pytest.approx([s.probability for s in expected], abs=2e-4)


def test_a_search_is_the_same_to_the_last_bit_in_any_bundle_batch_and_memory() -> None:
    alone = searched(SharingScorer(ROUTED, TOKENIZER, notice=refuse), CLOZE, bundle=1)
    assert len({tuple(path.decisions for path in tried) for tried in alone}) > 1
    for bundle, batch_size, memory in ((9, 64, 1 << 30), (4, 2, 1 << 30), (9, 3, 20_000), (2, 64, 0)):
        scorer = SharingScorer(ROUTED, TOKENIZER, memory=memory, batch_size=batch_size, notice=refuse)
        assert searched(scorer, CLOZE, bundle) == alone


def test_a_search_agrees_with_the_one_at_a_time_scorer() -> None:
    """Scores differ in the last digits only, so trees do where nothing is close: compared path by path."""
    together = searched(SharingScorer(ROUTED, TOKENIZER, notice=refuse), CLOZE, bundle=9)
    plain = searched(Scorer(ROUTED, TOKENIZER, batch_size=1), CLOZE, bundle=1)
    same = 0
    for ours, theirs in zip(together, plain, strict=True):
        known = {path.decisions: path for path in theirs}
        for path in ours:
            if path.decisions in known:
                assert path.probability == pytest.approx(known[path.decisions].probability, abs=1e-5)
        same += [path.decisions for path in ours] == [path.decisions for path in theirs]
    assert same >= len(CLOZE) - 1


def test_every_pass_runs_once() -> None:
    calls: list[tuple[int, int]] = []
    model = copy.deepcopy(ROUTED)
    scorer = SharingScorer(model, TOKENIZER, notice=refuse)
    run = scorer.blocks.run
    scorer.begin(CLOZE[:3]).score([0], [(1,) * BLOCKS])
    before = scorer.work

    def counted(block: int, hidden: Any, prepared: Any, rows: Any) -> Any:
        calls.append((block, len(rows)))
        return run(block, hidden, prepared, rows)

    scorer.blocks.run = counted  # type: ignore[method-assign]
    session = scorer.begin(CLOZE[:3])
    tried = [(1, 1, 1, 1), (1, 1, 0, 1), (1, 2, 0, 1), (1, 1, 1, 1), (0, 0, 0, 1)]
    for path in tried:
        session.score([0, 1, 2], [path] * 3)
    session.score([0, 0, 0], tried[:3])
    unrolled_paths = [tuple(block for block, times in enumerate(path) for _ in range(times)) for path in tried]
    distinct = {path[:end] for path in unrolled_paths for end in range(1, len(path) + 1)}
    assert sum(rows for _, rows in calls) == 3 * len(distinct)
    work = scorer.work
    assert work.passes_run - before.passes_run == 3 * len(distinct)
    assert work.paths - before.paths == 3 * len(set(tried))
    assert work.avoided > 0
    assert 0 <= work.padding < 0.3


def test_only_what_is_read_goes_through_the_head() -> None:
    model = copy.deepcopy(ROUTED)
    seen: list[int] = []
    scorer = SharingScorer(model, TOKENIZER, notice=refuse)
    session = scorer.begin(CLOZE)
    model.get_base_model().lm_head.register_forward_hook(
        lambda module, args, output: seen.append(args[0].numel() // 32)
    )
    session.score(range(len(CLOZE)), [(1,) * BLOCKS] * len(CLOZE))
    reads = sum(len(pack(*[scorer.plain.encode(p).prompt, scorer.plain.encode(p).continuations]).reads) for p in CLOZE)
    assert reads <= sum(seen) < reads + 8


def test_the_bound_on_memory_holds() -> None:
    scorer = SharingScorer(ROUTED, TOKENIZER, memory=30_000, notice=refuse)
    session = scorer.begin(CLOZE)
    for path in [(1, 1, 1, 1), (1, 1, 2, 1), (0, 1, 1, 1)]:
        session.score(range(len(CLOZE)), [path] * len(CLOZE))
        states = session._states._states.values()  # type: ignore[union-attr]
        assert sum(state.untyped_storage().nbytes() for state in states) <= 30_000


@settings(max_examples=25)
@given(prompt=choice_prompts(), tried=st.lists(paths, min_size=1, max_size=8))
def test_many_paths_of_many_prompts(prompt: Prompt, tried: list[tuple[int, ...]]) -> None:
    prompts, lists = [*CLOZE[:3], prompt], [tried[:1], tried, [], tried]
    scores = score_paths(SharingScorer(ROUTED, TOKENIZER, notice=refuse), prompts, lists, bundle=3)
    as_lists = [[list(path) for path in of_prompt] for of_prompt in lists]
    assert score_paths(SharingScorer(ROUTED, TOKENIZER, notice=refuse), prompts, as_lists, bundle=3) == scores
    for asked, along, found in zip(prompts, lists, scores, strict=True):
        plain = Scorer(ROUTED, TOKENIZER).score([asked] * len(along), along)
        assert [score.decisions for score in found] == along
        assert [score.probability for score in found] == pytest.approx([s.probability for s in plain], abs=2e-4)


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    expected = searched(SharingScorer(ROUTED, TOKENIZER), CLOZE, bundle=9)
    scorer = SharingScorer(ROUTED, TOKENIZER, notice=said.append)
    run, most = scorer.blocks.run, 2

    def small(block: int, hidden: Any, prepared: Any, rows: Any) -> Any:
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(block, hidden, prepared, rows)

    monkeypatch.setattr(scorer.blocks, "run", small)
    assert searched(scorer, CLOZE, bundle=9) == expected
    assert len(said) == 1
    assert "out of memory" in said[0]
    assert scorer.batch_size == 2
    most = 0
    with pytest.raises(DrLLMError, match="lower --memory"):
        searched(scorer, CLOZE, bundle=9)


def test_a_path_with_numbers_that_are_not_finite_is_wrong() -> None:
    model = copy.deepcopy(ROUTED)
    with torch.no_grad():
        model.get_base_model().model.layers[2].base_layer.mlp.down_proj.weight.fill_(math.nan)
    scorer = SharingScorer(model, TOKENIZER, notice=refuse)
    for tried in searched(scorer, CLOZE[:4], bundle=4):
        for path in tried:
            assert math.isnan(path.probability) == (path.decisions[2] > 0)
            assert not (path.decisions[2] and path.correct)
        assert any(path.correct or path.probability > 0 for path in tried)


def test_one_question_in_a_bundle_does_not_depend_on_the_others() -> None:
    session = SharingScorer(ROUTED, TOKENIZER, notice=refuse).begin(CLOZE)
    alone = [SharingScorer(ROUTED, TOKENIZER, notice=refuse).begin([prompt]) for prompt in CLOZE]
    search = PathSearch(BLOCKS, CONFIG, "q")
    while (path := search.propose()) is not None:
        together = session.score(range(len(CLOZE)), [path] * len(CLOZE))
        assert together == [single.score([0], [path])[0] for single in alone]
        search.report(together[0].probability, together[0].correct)


FREE = [Prompt(p.text, False, (f" w{5 + n} w{n + 1}",), f"w{5 + n} w{n + 1}", "free", 5) for n, p in enumerate(CLOZE)]


def with_right_answers(prompts: list[Prompt], path: tuple[int, ...]) -> list[Prompt]:
    """The same questions, every other one with the reference that the model gives along the path."""
    texts = Scorer(ROUTED, TOKENIZER, batch_size=1).generate(prompts, [path] * len(prompts))
    return [
        Prompt(p.text, False, (f" {text}",), text, "free", 5) if n % 2 else p
        for n, (p, text) in enumerate(zip(prompts, texts, strict=True))
    ]


@settings(max_examples=15)
@given(path=paths, seed=st.integers(0, 3))
def test_free_answers_are_judged_as_the_plain_scorer_does(path: tuple[int, ...], seed: int) -> None:
    prompts = with_right_answers(FREE[seed:], path)
    found = (
        SharingScorer(ROUTED, TOKENIZER, notice=refuse).begin(prompts).score(range(len(prompts)), [path] * len(prompts))
    )
    plain = [Scorer(ROUTED, TOKENIZER).score([prompt], [path])[0] for prompt in prompts]
    assert [score.correct for score in found] == [score.correct for score in plain]
    assert any(score.correct for score in found)
    assert [score.probability for score in found] == pytest.approx([s.probability for s in plain], abs=2e-4)
    for ours, theirs in zip(found, plain, strict=True):
        assert theirs.text.startswith(ours.text)  # type: ignore[union-attr, arg-type]


def test_nothing_is_generated_when_the_verdict_is_known() -> None:
    """The pass that scores the reference shows the first token, which settles most wrong answers."""
    path = (1, 1, 0, 1)
    prompts = with_right_answers(FREE, path)
    scorer = SharingScorer(ROUTED, TOKENIZER, notice=refuse)
    asked: list[Prompt] = []
    generate = scorer.plain.generate

    def counted(prompts: Any, *arguments: Any) -> Any:
        asked.extend(prompts)
        return generate(prompts, *arguments)

    scorer.plain.generate = counted  # type: ignore[method-assign]
    scores = scorer.begin(prompts).score(range(len(prompts)), [path] * len(prompts))
    assert sum(score.correct for score in scores) == len(prompts) // 2
    assert not asked
    # With room for more than the reference, the model is asked what comes after it: one token, which settles it.
    longer = [Prompt(p.text, False, p.continuations, p.answer, "free", 9) for p in prompts[1::2]]
    scores = scorer.begin(longer).score(range(len(longer)), [path] * len(longer))
    assert not any(score.correct for score in scores)
    assert set(asked) == set(longer)
    assert all(len(score.text.split()) == 6 for score in scores)  # type: ignore[union-attr]
    model = copy.deepcopy(ROUTED)
    model.generation_config.repetition_penalty = 1.3
    scorer = SharingScorer(model, TOKENIZER, notice=refuse)
    scores = scorer.begin(prompts).score(range(len(prompts)), [path] * len(prompts))
    assert [s.correct for s in scores] == [
        s.correct for s in Scorer(model, TOKENIZER).score(prompts, [path] * len(prompts))
    ]


def test_a_free_search_is_the_same_in_any_bundle() -> None:
    prompts = with_right_answers(FREE, (1, 2, 1, 1))
    alone = searched(SharingScorer(ROUTED, TOKENIZER, notice=refuse), prompts, bundle=1)
    assert any(path.correct for tried in alone for path in tried)
    assert searched(SharingScorer(ROUTED, TOKENIZER, notice=refuse), prompts, bundle=9) == alone
