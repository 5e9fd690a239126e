"""Mixtures and bootstrap against definitions; the table of baselines in a small world whose best paths are known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from rich.console import Console
from test_compare import Outcome
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError
from drllm_adapter.adapter.layer import routed_layers
from drllm_adapter.evaluation import Contender, Effort, compare, compare_with_baselines, paired_bootstrap, plot_tradeoff
from drllm_adapter.evaluation.baselines import (
    BaselineTable,
    PathOutcomes,
    block_influence_order,
    evenly_spaced,
    greedy_paths,
    most_similar_run,
    state_similarity,
)
from drllm_adapter.evaluation.contenders import best_mixture, mix
from drllm_adapter.evaluation.sweep import priced, sweep_controls
from drllm_adapter.supervision.effects import regress_effects
from drllm_adapter.tasks import Prompt

BLOCKS = 5
NEEDED = {"left": {0, 1, 2}, "right": {0, 1, 3}, "early": {0, 1}, "late": {3, 4}, "both": {0, 1, 3, 4}}
"""Questions of each task need other blocks; the first two never need block 4."""


class Tokens:
    def __call__(self, text: str, add_special_tokens: bool = True, return_tensors: str = "pt") -> dict[str, Any]:
        return {"input_ids": torch.tensor([[2 + ord(letter) % (VOCABULARY - 2) for letter in text]])}


def prompt(task: str, number: int) -> Prompt:
    return Prompt(f"{task} {number}", False, (" a", " b", " c", " d"), number % 4, "cloze", 1)


def outcome(asked: Prompt, path: tuple[int, ...]) -> Outcome:
    """A path that leaves out a needed block answers d."""
    needed = NEEDED[asked.text.split()[0]]
    says = int(asked.text.split()[1]) % 4 if all(path[block] for block in needed) else 3
    return Outcome(says == asked.answer, 0.9 if says == asked.answer else 0.1, path)


def score(prompts: Sequence[Prompt], paths: Sequence[Sequence[tuple[int, ...]]]) -> list[list[Outcome]]:
    return [[outcome(asked, path) for path in tried] for asked, tried in zip(prompts, paths, strict=True)]


@dataclass(frozen=True)
class Row:
    task: str
    number: int
    paths: tuple[Outcome, ...]

    @property
    def prompt(self) -> str:
        return self.to_prompt().text

    def to_prompt(self) -> Prompt:
        return prompt(self.task, self.number)


def rows(count: int, tasks: Sequence[str] = ("left", "right")) -> list[Row]:
    random, found = np.random.default_rng(0), []
    for number in range(count):
        task = tasks[number % len(tasks)]
        paths = [(1,) * BLOCKS, *(tuple(path) for path in random.integers(0, 2, (12, BLOCKS)).tolist())]
        asked = prompt(task, number // len(tasks))
        found.append(Row(task, number // len(tasks), tuple(outcome(asked, path) for path in paths)))
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return get_peft_model(tiny_model("llama"), DrLLMConfig(num_windows=2, router_width=8)).eval()


@pytest.fixture(scope="module")
def table(model: Any) -> BaselineTable:
    """Routers that leave out what is not needed, on 120 questions."""
    tasks = ["left", "right"] * 60
    prompts = [prompt(task, number // 2) for number, task in enumerate(tasks)]
    paths = [(1, 1, 1, 0, 0) if task == "left" else (1, 1, 0, 1, 0) for task in tasks]
    effort = Effort(greedy_questions=40, state_prompts=3, oracle_questions=80)
    routed = [outcome(asked, path) for asked, path in zip(prompts, paths, strict=True)]
    return compare_with_baselines(model, Tokens(), routed, prompts, tasks, rows(80), score, effort)


def test_the_table_knows_who_is_better(table: BaselineTable) -> None:
    found = {row["name"]: row for row in table.rows}
    assert table.routed.value == 1
    assert all(row["passes"] == pytest.approx(3) for name, row in found.items() if name != "base")
    assert (found["base"]["value"], found["base"]["passes"]) == (1, 5)
    # One path of three passes serves one task, and the other then only by the luck of answering d; so does a mixture.
    for name in ("static, greedy", "static, regression"):
        assert found[name]["value"] == pytest.approx(1 - 0.5 * 0.75)
        low, high = found[name]["difference_interval"]
        assert 0.2 < low < 0.375 < high < 0.5
    # Who sees the task needs nothing else, and such a router is not beaten.
    assert found["task router"]["value"] == 1
    assert found["task router"]["difference"] == 0
    assert found["length router"]["value"] < 1
    assert found["random"]["value"] < 0.5
    # Blocks 0 to 2 alone.
    assert found["early exit"]["value"] == pytest.approx(1 - 0.5 * 0.75)
    assert found["evenly spaced"]["value"] <= 1 - 0.5 * 0.75


def test_a_fractional_mean_lies_between_the_whole_numbers_around_it(model: Any) -> None:
    """At 3.5 passes a static path is half of the time one of 3, which serves one task, and half one of 4: all."""
    tasks = ["left", "right"] * 60
    prompts = [prompt(task, number // 2) for number, task in enumerate(tasks)]
    paths = [(1, 1, 1, 0, 0) if task == "left" else (1, 1, 1, 1, 0) for task in tasks]
    routed = [outcome(asked, path) for asked, path in zip(prompts, paths, strict=True)]
    effort = Effort(greedy_questions=40, state_prompts=3, oracle_questions=10)
    table = compare_with_baselines(model, Tokens(), routed, prompts, tasks, rows(80), score, effort)
    found = {row["name"]: row for row in table.rows}
    one_task = 1 - 0.5 * 0.75
    for name in ("static, greedy", "static, regression", "early exit"):
        assert found[name]["passes"] == 3.5
        assert found[name]["value"] == pytest.approx((one_task + 1) / 2)
    assert found["random"]["passes"] == 3.5


def test_a_rare_task_learns_from_all_the_others(model: Any) -> None:
    """One question of a task, along the base's path alone, says nothing; what others need is its path of 4 passes."""
    tasks = ["early", "late", "both"] * 40
    prompts = [prompt(task, number // 3) for number, task in enumerate(tasks)]
    best = {"early": (1, 1, 0, 0, 0), "late": (0, 0, 0, 1, 1), "both": (1, 1, 0, 1, 1)}
    routed = [outcome(asked, best[task]) for asked, task in zip(prompts, tasks, strict=True)]
    rare = Row("both", 0, (outcome(prompt("both", 0), (1,) * BLOCKS),))
    effort = Effort(greedy_questions=40, state_prompts=3, oracle_questions=10)
    training = [*rows(80, ("early", "late")), rare]
    table = compare_with_baselines(model, Tokens(), routed, prompts, tasks, training, score, effort)
    found = {row["name"]: row for row in table.rows}
    assert found["task router"]["passes"] == pytest.approx(8 / 3)
    assert found["task router"]["value"] == 1
    assert found["static, regression"]["value"] < 0.8


def test_the_oracle_of_chance(table: BaselineTable) -> None:
    assert table.oracles["search"]["accuracy"] == 1
    # Of four answers a question ever gets two at most, its own and d.
    assert 0.3 < table.oracles["chance"]["accuracy"] < 0.6
    assert table.oracles["tries"] == 13


def test_json_and_figure(table: BaselineTable, tmp_path: Path, model: Any) -> None:
    from matplotlib import image

    plain = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert plain["routed"]["value"] == 1
    assert [row["name"] for row in plain["baselines"]] == [row["name"] for row in table.rows]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.table())
    assert "oracle of chance" in console.export_text()
    scores = [Outcome(True, 0.9, (1, 1, 1, 0, 0))] * 4
    report = compare(scores, scores, [None] * 4)
    assert "baselines" not in report.to_json()
    report = type(report)(
        **{**report.__dict__, "baselines": table, "sweep": sweep_controls(model, scores, lambda: scores)}
    )
    assert {"baselines", "sweep"} <= set(json.loads(json.dumps(report.to_json())))
    plot_tradeoff(report, tmp_path / "tradeoff.png")
    assert image.imread(tmp_path / "tradeoff.png").std() > 0.05


# Mixtures and intervals


def contender(values: Sequence[float], passes: float) -> Contender:
    return Contender("", np.array(values, dtype=float), passes)


def test_mixtures_by_hand() -> None:
    low, high = contender([0, 1, 0, 0], 4), contender([1, 1, 0, 0], 6)
    between = mix(low, high, 4.5)
    assert between.each.tolist() == [0.25, 1, 0, 0]
    assert between.passes == 4.5
    assert mix(high, low, 4.5).each.tolist() == between.each.tolist()
    with pytest.raises(ValueError, match="cannot make 7"):
        mix(low, high, 7)


@given(
    st.dictionaries(st.integers(0, 9), st.integers(0, 10), min_size=1, max_size=5),
    st.lists(st.floats(0.01, 1), min_size=10, max_size=10),
)
def test_no_mixture_is_better(right: dict[int, int], weights: list[float]) -> None:
    points = [contender([1.0] * count + [0.0] * (10 - count), passes) for passes, count in right.items()]
    shares = np.array([weights[passes] for passes in right]) / sum(weights[passes] for passes in right)
    mean = float(
        np.clip(sum(share * point.passes for share, point in zip(shares, points, strict=True)), min(right), max(right))
    )
    accuracy = sum(share * point.value for share, point in zip(shares, points, strict=True))
    best = best_mixture(points, mean)
    assert best.value >= accuracy - 1e-9
    assert best.passes == pytest.approx(mean)


def test_outside_of_the_points_the_nearest_counts() -> None:
    points = [contender([0], 4), contender([1], 6)]
    assert best_mixture(points, 9).passes == 6
    assert best_mixture(points, 1).passes == 4


def test_bootstrap_is_paired_and_has_the_right_width() -> None:
    random = np.random.default_rng(0)
    first = random.integers(0, 2, 400).astype(float)
    second = first.copy()
    second[:20] = 1 - second[:20]
    low, high = paired_bootstrap(first, second)
    # Twenty of 400 differ: the standard error of the mean difference is that of these twenty.
    difference = first - second
    error = difference.std() / 20
    assert (low, high) == (pytest.approx(difference.mean() - 1.96 * error, abs=0.004),
                           pytest.approx(difference.mean() + 1.96 * error, abs=0.004))  # fmt: skip
    assert paired_bootstrap(first, first) == (0, 0)
    assert paired_bootstrap(first, second, seed=1) != (low, high)


# Paths that leave out blocks


@given(blocks=st.integers(1, 30), data=st.data())
def test_evenly_spaced(blocks: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, blocks))
    path = evenly_spaced(blocks, number)
    skipped = [block for block, decision in enumerate(path) if decision == 0]
    assert sum(path) == number
    gaps = np.diff(skipped)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_evenly_spaced_by_hand() -> None:
    assert evenly_spaced(6, 4) == (1, 0, 1, 1, 0, 1)
    assert evenly_spaced(5, 5) == (1,) * 5


def test_similarities_are_those_of_the_hidden_states(model: Any) -> None:
    base = tiny_model("llama")
    prompts = [prompt("left", number) for number in range(2)]
    total, tokens = np.zeros((6, 6)), 0
    for asked in prompts:
        ids = Tokens()(asked.text)["input_ids"]
        states = list(base(ids, output_hidden_states=True).hidden_states[:-1])
        last: list[torch.Tensor] = []
        hook = base.model.norm.register_forward_pre_hook(lambda _, args, last=last: last.append(args[0]))
        base(ids)
        hook.remove()
        for i, j in product(range(6), repeat=2):
            pair = [*states, last[0]][i][0], [*states, last[0]][j][0]
            total[i, j] += float(torch.cosine_similarity(*pair, dim=-1).sum())
        tokens += ids.shape[1]
    similarity = state_similarity(model, Tokens(), prompts)
    assert similarity == pytest.approx(total / tokens, abs=1e-5)
    assert not routed_layers(model)[0]._forward_pre_hooks


def test_choices_from_similarities() -> None:
    similarity = np.eye(5)
    for (i, j), value in {
        (0, 1): 0.2,
        (1, 2): 0.9,
        (2, 3): 0.5,
        (3, 4): 0.7,
        (0, 2): 0.1,
        (1, 3): 0.3,
        (2, 4): 0.4,
    }.items():
        similarity[i, j] = value
    assert block_influence_order(similarity) == [1, 3, 2, 0]
    assert most_similar_run(similarity, 1) == [1]
    assert most_similar_run(similarity, 2) == [2, 3]
    assert most_similar_run(similarity, 0) == []


def test_greedy_leaves_out_what_costs_least() -> None:
    training = rows(40)
    effects = regress_effects(row.paths for row in training)
    outcomes = PathOutcomes([row.to_prompt() for row in training], score)
    paths = greedy_paths(outcomes, effects, least=3)
    assert paths[5] == (1,) * 5
    assert paths[4] == (1, 1, 1, 1, 0)
    assert paths[3] in ((1, 1, 1, 0, 0), (1, 1, 0, 1, 0))
    assert greedy_paths(outcomes, effects, least=3, candidates=1)[4] == (1, 1, 1, 1, 0)


# Controls


def test_a_price_moves_logits_and_is_taken_back(model: Any) -> None:
    routers = [layer.drllm_router["default"] for layer in routed_layers(model)]
    before = [router.up.bias.clone() for router in routers]

    def look_and_fail() -> None:
        with priced(model, 0.5):
            for router, bias in zip(routers, before, strict=True):
                assert (bias - router.up.bias).tolist() == pytest.approx([0, 0.5, 1.0])
            raise KeyError

    with pytest.raises(KeyError):
        look_and_fail()
    assert all(torch.equal(router.up.bias, bias) for router, bias in zip(routers, before, strict=True))


def test_a_sweep_sets_one_control_at_a_time(model: Any) -> None:
    config = routed_layers(model)[0].active_config
    seen = []

    def look() -> list[Outcome]:
        bias = float(routed_layers(model)[0].drllm_router["default"].up.bias[1])
        seen.append((config.depth_control, config.layer_budget, round(1 - bias, 6)))
        return [Outcome(True, 1.0, (1, 1, 0, 0, 0))]

    routed = [Outcome(True, 1.0, (1, 1, 0, 0, 0)), Outcome(False, 0.0, (2, 1, 1, 1, 1))]
    points = sweep_controls(model, routed, look, depth_controls=(-0.7, 0.1), prices=(0.3,))
    assert seen == [(-0.7, None, 0), (0.1, None, 0), *((-0.5, budget, 0) for budget in (3, 4, 5)), (-0.5, None, 0.3)]
    assert (config.depth_control, config.layer_budget) == (-0.5, None)
    assert (points[0].control, points[0].mean_passes, points[0].metric.value) == ("as trained", 4.0, 0.5)
    assert [point.control for point in points[1:]] == ["depth control"] * 2 + ["layer budget"] * 3 + ["price"]


def test_without_an_adapter_there_is_nothing_to_sweep(model: Any) -> None:
    with model.disable_adapter(), pytest.raises(DrLLMError, match="must be active"):
        sweep_controls(model, [], list)


def test_agreement_is_compared_like_accuracy(model: Any) -> None:
    """Each needed block left out halves the agreement: kinds that need fewer give up more, where the kind is known."""

    def agreeing(asked: Prompt, path: tuple[int, ...]) -> Outcome:
        lost = sum(path[block] == 0 for block in NEEDED[asked.text.split()[0]])
        return Outcome(lost == 0, 0.5 / 2**lost, path, agreement=0.5**lost, kl=float(lost))

    def along(prompts: Sequence[Prompt], paths: Sequence[Sequence[tuple[int, ...]]]) -> list[list[Outcome]]:
        return [[agreeing(asked, path) for path in tried] for asked, tried in zip(prompts, paths, strict=True)]

    kinds = ["early", "both"] * 40
    prompts = [prompt(kind, number // 2) for number, kind in enumerate(kinds)]
    # Two blocks and four: three on average.
    paths = [(1, 1, 0, 0, 0) if kind == "early" else (1, 1, 0, 1, 1) for kind in kinds]
    routed = along(prompts, [[path] for path in paths])
    found = []
    for row in rows(60, ("early", "both")):
        tried = tuple(agreeing(row.to_prompt(), path.decisions) for path in row.paths)
        found.append(Row(row.task, row.number, tried))
    table = compare_with_baselines(
        model, Tokens(), [outcomes[0] for outcomes in routed], prompts, kinds, found, along, Effort(state_prompts=3)
    )
    assert (table.metric, table.oracles) == ("agreement", {})
    assert "agreement, %" in str([column.header for column in table.table().columns])
    by_name = {row["name"]: row for row in table.rows}
    assert (table.routed.value, by_name["base"]["value"]) == (1, 1)
    assert by_name["task router"]["value"] == 1
    # Three passes for all: one of the two blocks that "both" needs beside the first two is left out.
    assert by_name["static, greedy"]["value"] == pytest.approx((1 + 0.5) / 2)
    low, high = by_name["static, greedy"]["difference_interval"]
    assert 0.15 < low < 0.25 < high < 0.35
