"""Refinement: paths are walked as the routers would, learning follows the reward, and interruptions change nothing."""

import copy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions
from drllm_adapter.adapter.layer import observe_router_inputs, routed_layers
from drllm_adapter.jobs import ALONE
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.scoring.shared_prefix import SharingScorer, SharingSession
from drllm_adapter.scoring.shared_prefix.walk import walk
from drllm_adapter.supervision.rewards import find_reward
from drllm_adapter.tasks import Prompt
from drllm_adapter.training import RefineConfig, read_weights, refine_routers
from drllm_adapter.training.refine import _Run
from drllm_adapter.training.router_policy import RouterPolicy

BLOCKS, WINDOWS = 4, 3


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"w{number}": number for number in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")


def routed(spread: float = 1.0) -> Any:
    """Routers that choose different paths for different prompts."""
    config = DrLLMConfig(num_windows=WINDOWS, rms_norm=True, router_width=8, layers_to_transform=[0, 1, 3])
    model = get_peft_model(tiny_model("llama", BLOCKS), config).eval()
    torch.manual_seed(1)
    for layer in routed_layers(model):
        for router in layer.drllm_router.values():
            for parameter in router.parameters():
                torch.nn.init.normal_(parameter, std=spread)
    return model


MODEL, TOKENIZER = routed(), tokenizer()
WORDS = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=9).map(lambda n: " ".join(f"w{i}" for i in n))


def ask(text: str) -> Prompt:
    return Prompt(text, False, ("w1 w2", "w3", "w4 w5 w6"), 1, "cloze", 4)


def what_routers_read(model: Any, text: str, path: Sequence[int]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """By block the windows' means and the weight of each window, of the model's own forward along a path."""
    read: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(block: int, means: torch.Tensor, used: torch.Tensor) -> None:
        read[block] = (means.clone(), (torch.arange(WINDOWS) < used[:, None]).float() / used[:, None])

    with force_decisions(model, path), observe_router_inputs(model, note), torch.no_grad():
        model(torch.tensor([TOKENIZER(text)["input_ids"]]))
    return read


def begin(model: Any, texts: list[str]) -> SharingSession:
    session = SharingScorer(model, TOKENIZER).begin([ask(text) for text in texts])
    assert isinstance(session, SharingSession)
    return session


@settings(max_examples=25)
@given(texts=st.lists(WORDS, min_size=1, max_size=5))
def test_the_likeliest_path_is_the_one_that_the_routers_take(texts: list[str]) -> None:
    """Paths and scores are those of the model's own forward, with its routers deciding."""
    weights, layers = read_weights(MODEL)
    session = begin(MODEL, texts)
    places = list(range(len(texts)))
    paths = walk(session, places, RouterPolicy(weights, layers, WINDOWS, True))
    expected = Scorer(MODEL, TOKENIZER).score([ask(text) for text in texts])
    assert paths == [score.decisions for score in expected]
    found = session.score(places, paths)
    assert [score.probability for score in found] == pytest.approx([score.probability for score in expected], abs=1e-5)


@settings(max_examples=15)
@given(texts=st.lists(WORDS, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_what_was_drawn_is_what_the_routers_read_and_how_likely_they_found_it(texts: list[str], seed: int) -> None:
    """Every visit against the model itself, forced along the path that was drawn."""
    weights, layers = read_weights(MODEL)
    walkers = [place for place in range(len(texts)) for _ in range(6)]
    draws = torch.rand(len(walkers), BLOCKS, generator=torch.Generator().manual_seed(seed))
    policy = RouterPolicy(weights, layers, WINDOWS, True, draws)
    paths = walk(begin(MODEL, texts), walkers, policy)
    assert all(path[2] == 1 for path in paths)  # a block without a router
    for walker, (place, path) in enumerate(zip(walkers, paths, strict=True)):
        read = what_routers_read(MODEL, texts[place], path)
        for visit in policy.visits:
            (at,) = (visit.walkers == walker).nonzero()[0]
            group, block = int(visit.groups[at]), layers[visit.router]
            means, shares = read[block]
            assert int(visit.used[group]) == int((shares > 0).sum())
            assert torch.allclose(visit.means[group], means[0], atol=1e-4)
            router = routed_layers(MODEL)[block].drllm_router["default"]
            likely = router(means, shares).softmax(-1)[0].detach().cumsum(0)
            drawn = float(draws[walker, block])
            if (likely - drawn).abs().min() > 1e-4:
                assert int(visit.decisions[at]) == int((drawn >= likely[:2]).sum()) == path[block]


def test_a_pass_runs_once_for_all_who_share_it() -> None:
    session = begin(MODEL, ["w5 w6 w7"])
    before = session.scorer.work.passes_run
    chosen = {0: [1, 1, 1], 1: [0, 1, 2], 2: [1, 1, 1], 3: [1, 1, 1]}
    members: list[int] = []

    def decide(block: int, places: Any, hidden: Any, walkers: Any) -> list[list[int]]:
        members.append(len(walkers))
        return [[chosen[block][walker] for walker in group] for group in walkers]

    paths = walk(session, [0, 0, 0], decide)
    assert paths == [(1, 0, 1, 1), (1, 1, 1, 1), (1, 2, 1, 1)]
    assert members == [1, 1, 3, 3]
    ran = session.scorer.work.passes_run - before
    assert ran == 1 + 2 + 3 + 3  # a first pass serves who executes and who repeats
    session.score([0, 0, 0], paths)
    assert session.scorer.work.passes_run - before == ran


def refine(model: Any, prompts: list[Prompt], reward: Any, **changes: Any) -> Any:
    weights, layers = read_weights(model)
    process = {name: changes.pop(name) for name in ("checkpoint", "checkpoint_seconds") if name in changes}
    batch = changes.pop("rows", 64)
    config = RefineConfig(**{"max_steps": 3, "batch_size": 4, "num_generations": 4, "eval_steps": 2, **changes})
    scorer = SharingScorer(model, TOKENIZER, batch_size=batch)
    ids = [prompt.text for prompt in prompts]
    return refine_routers(
        weights, layers, scorer, prompts, ids, reward, config, num_windows=WINDOWS, rms_norm=True, **process
    )


PROMPTS = [ask(f"w{first} w{second} w{first}") for first in (1, 2) for second in range(3, 13)]


def skip_where_it_begins_with_w1(prompt: Prompt, score: Any) -> float:
    """What is wanted of block 1 depends on the first word; the others shall execute."""
    wanted = (1, 0 if prompt.text.startswith("w1 ") else 2, 1, 1)
    return float(score.decisions == wanted)


def test_routers_learn_what_the_reward_wants_of_each_prompt() -> None:
    model = get_peft_model(
        tiny_model("llama", BLOCKS), DrLLMConfig(num_windows=WINDOWS, rms_norm=True, router_width=8)
    ).eval()
    result = refine(
        model, PROMPTS, skip_where_it_begins_with_w1, max_steps=60, batch_size=10, price=0.0, learning_rate=0.05
    )
    assert result.history[0]["validation_reward"] == 0.0
    assert result.history[-1]["validation_reward"] == 1.0
    assert result.history[-1]["entropy"] < result.history[1]["entropy"]
    assert len(result.validation) == 4


def test_the_price_makes_paths_shorter() -> None:
    model = get_peft_model(
        tiny_model("llama", BLOCKS), DrLLMConfig(num_windows=WINDOWS, rms_norm=True, router_width=8)
    ).eval()
    result = refine(model, PROMPTS, lambda prompt, score: 0.0, max_steps=40, price=4.0, learning_rate=0.05)
    assert result.history[-1]["validation_passes"] <= 1
    assert result.history[0]["validation_passes"] == BLOCKS


def test_the_gradient_is_that_of_reinforce_with_a_leave_one_out_baseline() -> None:
    """One step against the sum written out path by path, with autograd through the routers of the model."""
    price, count, model = 0.7, 5, copy.deepcopy(MODEL)
    weights, layers = read_weights(model)
    config = RefineConfig(max_steps=1, batch_size=3, num_generations=count, price=price, entropy_coef=0.0)
    scorer = SharingScorer(model, TOKENIZER)
    ids = [prompt.text for prompt in PROMPTS]
    run = _Run(weights, layers, scorer, PROMPTS, ids, find_reward("probability"), config, WINDOWS, True, ALONE)
    places = run._batch(range(len(PROMPTS)))
    paths: dict[int, list[int]] = {walker: [1] * BLOCKS for walker in range(count * len(places))}
    for visit in run._walk(places, count, drawn=True).visits:
        for walker, decision in zip(visit.walkers.tolist(), visit.decisions.tolist(), strict=True):
            paths[walker][layers[visit.router]] = decision
    run._step(range(len(PROMPTS)))  # draws the same lots again

    routers = {layer: routed_layers(model)[layer].drllm_router["default"].requires_grad_(True) for layer in layers}
    loss, plain = torch.zeros(()), Scorer(model, TOKENIZER)
    for place, prompt in enumerate(PROMPTS[place] for place in places):
        taken = [tuple(paths[count * place + walker]) for walker in range(count)]
        scores = plain.score([prompt] * count, taken)
        worth = [score.probability - price * sum(path) / BLOCKS for score, path in zip(scores, taken, strict=True)]
        for path, value in zip(taken, worth, strict=True):
            advantage = value - (sum(worth) - value) / (count - 1)
            for layer, (means, shares) in what_routers_read(model, prompt.text, path).items():
                if layer in routers:
                    chosen = routers[layer](means, shares).log_softmax(-1)[0, path[layer]]
                    loss = loss - advantage * chosen / (count * len(places))
    loss.backward()
    for name, weight in run.weights.items():
        wanted = [dict(routers[layer].named_parameters())[name.replace("_", ".")].grad for layer in layers]
        assert torch.allclose(weight.grad, torch.stack(wanted), atol=1e-5)


def test_neither_batches_of_rows_nor_neighbours_change_anything() -> None:
    reward = find_reward("probability")
    first, second = (refine(MODEL, PROMPTS, reward, rows=rows) for rows in (64, 3))
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert first.history == second.history


def test_other_seeds_draw_other_paths() -> None:
    reward = find_reward("probability")
    first, second = (refine(MODEL, PROMPTS, reward, seed=seed) for seed in (0, 1))
    assert first.history[1] != second.history[1]


KILLED = """
import sys, time
sys.path[:0] = [{tests!r}, {here!r}]
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_refine
from drllm_adapter.training import refine as module
step = module._Run._step
module._Run._step = lambda self, train: (time.sleep(0.05), step(self, train))[1]
print("ready", flush=True)
test_refine.refined(Path(sys.argv[1]))
"""


def refined(checkpoint: Path | None) -> Any:
    return refine(
        MODEL, PROMPTS, find_reward("probability"), max_steps=8, checkpoint=checkpoint, checkpoint_seconds=0.05
    ).weights


@pytest.mark.parametrize("stop", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_refinement_goes_on_bit_for_bit(tmp_path: Path, stop: signal.Signals) -> None:
    code = KILLED.format(tests=str(Path(__file__).parents[1]), here=str(Path(__file__).parent))
    checkpoint = tmp_path / "checkpoint"
    process = subprocess.Popen([sys.executable, "-c", code, str(checkpoint)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    assert process.wait() != 0
    expected, found = refined(None), refined(checkpoint)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    refine(MODEL, PROMPTS, find_reward("probability"), checkpoint=tmp_path / "c", checkpoint_seconds=0.0)
    with pytest.raises(DrLLMError, match="another"):
        refine(MODEL, PROMPTS, find_reward("probability"), checkpoint=tmp_path / "c", price=0.1)


def test_a_reward_of_ones_own_reads_the_generated_text(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def short(prompt, text):\n    return 1.0 if len(text) < 4 else 0.25\n")
    reward = find_reward(f"{tmp_path / 'mine.py'}:short")
    prompt = Prompt("w1 w2", False, ("w3",), "w3", "free", 4)
    scores = Scorer(MODEL, TOKENIZER).score([prompt], [(1, 1, 1, 1)])
    assert scores[0].text is not None
    assert reward(prompt, scores[0]) == (1.0 if len(scores[0].text) < 4 else 0.25)
    with pytest.raises(DrLLMError, match="--mode free"):
        reward(ask("w1"), Scorer(MODEL, TOKENIZER).score([ask("w1")], [(1, 1, 1, 1)])[0])
    with pytest.raises(DrLLMError, match="must have a function"):
        find_reward(f"{tmp_path / 'mine.py'}:missing")


def test_weights_are_read_as_they_were_loaded() -> None:
    weights, layers = read_weights(MODEL)
    assert layers == (0, 1, 3)
    with torch.no_grad():
        MODEL(torch.tensor([[1, 2, 3]]))
    assert last_decisions(MODEL).shape == (1, BLOCKS)
    assert torch.equal(weights["up_bias"][2], routed_layers(MODEL)[3].drllm_router["default"].up.bias)
