"""The tree search against brute force, hand-worked values and its own promises."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm_adapter import DrLLMError
from drllm_adapter.decisions import ScoredPath
from drllm_adapter.search import PathSearch, SearchConfig
from drllm_adapter.search.tree import _Node, edits
from drllm_adapter.supervision import LABEL_RULES, choose_label, choose_labels
from drllm_adapter.supervision.labels import weighted

Reward = Callable[[tuple[int, ...]], tuple[float, bool]]


def table(seed: int, num_blocks: int) -> dict[tuple[int, ...], tuple[float, bool]]:
    """A reward for every path, drawn from a seed."""
    import random

    draw = random.Random(seed)
    paths = itertools.product((0, 1, 2), repeat=num_blocks)
    return {path: (round(draw.random(), 6), draw.random() < 0.4) for path in paths}


def run(search: PathSearch, rewards: dict[tuple[int, ...], tuple[float, bool]]) -> list[tuple[int, ...]]:
    proposed = []
    while (path := search.propose()) is not None:
        proposed.append(path)
        search.report(*rewards[path])
    return proposed


seeds = st.integers(0, 10**6)


@settings(max_examples=60)
@given(seed=seeds, num_blocks=st.integers(1, 4), simulations=st.integers(0, 60))
def test_every_proposal_is_a_new_valid_path(seed: int, num_blocks: int, simulations: int) -> None:
    search = PathSearch(num_blocks, SearchConfig(simulations=simulations, seed=seed), "q")
    proposed = run(search, table(seed, num_blocks))
    assert proposed[0] == (1,) * num_blocks
    assert len(proposed) == len(set(proposed)) <= simulations + 1
    for path in proposed:
        assert len(path) == num_blocks
        assert set(path) <= {0, 1, 2}
        assert 1 <= sum(path) <= 2 * num_blocks
    assert search.simulations == simulations
    assert [scored.decisions for scored in search.paths] == proposed


@settings(max_examples=3)
@given(seed=seeds)
def test_with_enough_simulations_the_best_path_is_tried(seed: int) -> None:
    rewards = table(seed, 3)
    search = PathSearch(3, SearchConfig(simulations=4000, random_child=0.5, seed=seed), "q")
    proposed = run(search, rewards)
    assert set(proposed) == {path for path in rewards if any(path)}


@settings(max_examples=60)
@given(path=st.lists(st.integers(0, 2), min_size=1, max_size=6).filter(any), max_skip=st.integers(0, 3))
def test_children_are_one_edit_away(path: list[int], max_skip: int) -> None:
    """Enumerated on the list of positions, where the paper defines the edits."""
    positions = [block for block, times in enumerate(path) for _ in range(times)]
    expected = set()
    for length in range(1, max_skip + 1):
        for start in range(len(positions) - length + 1):
            expected.add(tuple(positions[:start] + positions[start + length :]))
    for place, block in enumerate(positions):
        if positions.count(block) == 1:
            expected.add((*positions[: place + 1], block, *positions[place + 1 :]))
    expected.discard(())
    found = edits(tuple(path), max_skip)
    unrolled = [tuple(block for block, times in enumerate(child) for _ in range(times)) for child in found]
    assert len(unrolled) == len(set(unrolled))
    assert set(unrolled) == expected


@settings(max_examples=20)
@given(seed=seeds, order=st.randoms(use_true_random=False))
def test_searches_may_be_interleaved(seed: int, order: "object") -> None:
    rewards = table(seed, 4)
    config = SearchConfig(simulations=30, seed=seed)
    alone = [run(PathSearch(4, config, name), rewards) for name in ("a", "b", "c")]
    assert alone[0] != alone[1] or alone[1] != alone[2]
    together: dict[str, list[tuple[int, ...]]] = {"a": [], "b": [], "c": []}
    searches = {name: PathSearch(4, config, name) for name in together}
    while searches:
        name = order.choice(sorted(searches))  # type: ignore[attr-defined]
        path = searches[name].propose()
        if path is None:
            del searches[name]
        else:
            together[name].append(path)
            searches[name].report(*rewards[path])
    assert list(together.values()) == alone


@pytest.mark.parametrize(
    ("visits", "value", "parent_visits", "parent_value", "decisions", "exploration", "length_penalty", "bound"),
    [
        # 1.5/2 + 1.8 sqrt(ln 10 / 2) - 3 x 3/4, where ln 10 = 2.302585.
        (2, 1.5, 10, 4.0, (1, 0, 1, 1), 1.8, 3.0, 0.431369),
        # Never visited: the parent's mean 4/10, counted as one visit; 5 passes of 4 blocks.
        (0, 0.0, 10, 4.0, (1, 2, 1, 1), 1.8, 1.0, 1.881369),
        (4, 3.0, 4, 3.0, (1, 1, 1, 1), 0.0, 1.0, -0.25),
        # 1/5 + 0.5 sqrt(ln 20 / 5), where ln 20 = 2.995732.
        (5, 1.0, 20, 9.0, (2, 2, 2, 2), 0.5, 0.0, 0.587023),
    ],
)
def test_the_upper_bound_by_hand(
    visits: int,
    value: float,
    parent_visits: int,
    parent_value: float,
    decisions: tuple[int, ...],
    exploration: float,
    length_penalty: float,
    bound: float,
) -> None:
    """The paper's: mean reward + c sqrt(ln N / n) - lambda passes / L."""
    config = SearchConfig(exploration=exploration, length_penalty=length_penalty)
    child, parent = _Node(decisions, visits, value), _Node((1, 1, 1, 1), parent_visits, parent_value)
    assert PathSearch(4, config, "q")._upper_bound(child, parent) == pytest.approx(bound, abs=2e-6)


@pytest.mark.parametrize("question", ["a", "b", "c", "d"])
def test_the_search_goes_where_the_upper_bound_is_largest(question: str) -> None:
    """Two blocks, c = 1, lambda = 0.5, worked out by hand; only the order of twins is left to chance."""
    config = SearchConfig(simulations=5, exploration=1.0, length_penalty=0.5, random_child=0.0, max_skip=1)
    search = PathSearch(2, config, question)
    proposed = []
    for reward in (0.5, 0.1, 0.3, 0.0, 0.9):
        path = search.propose()
        assert path is not None
        proposed.append(path)
        search.report(reward, True)
    base, first, second, third, fourth = proposed
    assert base == (1, 1)
    # N = 1, ln 1 = 0, all children have the root's mean 0.5: 0.25 after one pass, -0.25 after three.
    assert first in ((0, 1), (1, 0))
    # N = 2, mean 0.3, sqrt(ln 2) = 0.83: the first has 0.1 + 0.58, its twin 0.3 + 0.58, the longer ones 0.3 + 0.08.
    assert {first, second} == {(0, 1), (1, 0)}
    # N = 3, mean 0.3, sqrt(ln 3) = 1.05: 0.90, its twin 1.10, the longer 0.60. Expanded, it has one child.
    assert third == tuple(2 * times for times in second)
    # N = 4, mean 0.225, sqrt(ln 4) = 1.18: the first 1.03, its twin 0.15 + 0.83 - 0.25 = 0.73, the longer 0.65.
    assert fourth == tuple(2 * times for times in first)


def test_exploration_widens_the_search() -> None:
    """Without it the search stays below the first good child; with much of it more of the root's children are tried."""
    rewards = {path: (float(path[0] == 2), False) for path in itertools.product((0, 1, 2), repeat=6)}
    first_level = set(edits((1,) * 6))
    tried = []
    for exploration in (0.0, 50.0):
        config = SearchConfig(simulations=30, exploration=exploration, length_penalty=0.0, random_child=0.0)
        tried.append(len(first_level.intersection(run(PathSearch(6, config, "q"), rewards))))
    assert tried[1] > 2 * tried[0]


@settings(max_examples=40)
@given(seed=seeds)
def test_the_published_early_stop(seed: int) -> None:
    rewards = table(seed, 4)
    config = SearchConfig.for_rule("shortest", simulations=60, seed=seed)
    search = PathSearch(4, config, "q")
    proposed = run(search, rewards)
    base_right = rewards[(1, 1, 1, 1)][1]

    def stops(path: tuple[int, ...]) -> bool:
        return rewards[path][1] and (not base_right or sum(path) <= 2)

    assert not any(stops(path) for path in proposed[1:-1])
    if search.simulations < 60:
        assert stops(proposed[-1])


def test_the_defaults_of_each_rule() -> None:
    paper = SearchConfig.for_rule("shortest")
    assert (paper.simulations, paper.exploration, paper.length_penalty, paper.random_child) == (50, 1.8, 3.0, 0.1)
    assert (paper.reward, paper.early_stop, paper.max_skip) == ("correct", True, 2)
    ours = SearchConfig.for_rule("price")
    assert (ours.reward, ours.early_stop, ours.length_penalty) == ("probability", False, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("simulations", -1), ("simulations", 1.5), ("random_child", 1.1), ("exploration", -0.1), ("reward", "luck"),
     ("max_skip", True), ("length_penalty", float("nan")), ("seed", -1)],
)  # fmt: skip
def test_wrong_constants_are_refused(field: str, value: object) -> None:
    with pytest.raises(DrLLMError, match=field):
        SearchConfig(**{field: value})  # type: ignore[arg-type]


scored_paths = st.lists(
    st.builds(
        ScoredPath,
        decisions=st.tuples(*[st.integers(0, 2)] * 3).filter(any),
        probability=st.integers(0, 20).map(lambda n: n / 20),
        correct=st.booleans(),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda path: path.decisions,
)


@settings(max_examples=80)
@given(paths=scored_paths, price=st.sampled_from([0.0, 0.1, 0.4, 1.0]), order=st.randoms(use_true_random=False))
def test_label_rules(paths: list[ScoredPath], price: float, order: "object") -> None:
    shortest, dear = choose_label(paths, "shortest", price), choose_label(paths, "price", price)
    right = [path for path in paths if path.correct]
    if not right:
        assert shortest is None
    else:
        found = next(path for path in paths if path.decisions == shortest)
        assert found.correct
        assert sum(found.decisions) == min(sum(path.decisions) for path in right)
    worth = {path.decisions: path.probability - price * sum(path.decisions) / 3 for path in paths}
    assert dear is not None
    assert worth[dear] == pytest.approx(max(worth.values()))
    shuffled = list(paths)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert (choose_label(shuffled, "shortest", price), choose_label(shuffled, "price", price)) == (shortest, dear)


def test_unknown_rules_and_prices_are_refused() -> None:
    assert set(LABEL_RULES) == {"weighted", "effects", "price", "shortest"}
    with pytest.raises(DrLLMError, match="price, shortest"):
        choose_label([], "lucky", 0.1)
    with pytest.raises(DrLLMError, match="price"):
        choose_label([], "price", float("nan"))


def test_the_tree_needs_no_torch() -> None:
    code = "import sys, drllm_adapter.search.tree, drllm_adapter.supervision.labels; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.just([]) | scored_paths, st.floats(0, 2), st.floats(0.01, 1), st.integers(1, 8))
def test_weighted_labels(paths: list[ScoredPath], price: float, temperature: float, limit: int) -> None:
    labels = weighted(paths, price, temperature=temperature, limit=limit)
    assert labels == weighted(paths[::-1], price, temperature=temperature, limit=limit)
    assert len(labels) <= limit
    assert bool(labels) == bool(paths)
    if not paths:
        return
    worth = {path.decisions: path.probability - price * sum(path.decisions) / len(path.decisions) for path in paths}
    assert sum(weight for _, weight in labels) == pytest.approx(1)
    assert labels[0][0] == choose_label(paths, "price", price)
    # Any two weights are in the ratio that the difference in worth says.
    for decisions, weight in labels:
        ratio = math.exp((worth[decisions] - worth[labels[0][0]]) / temperature)
        assert weight == pytest.approx(labels[0][1] * ratio, rel=1e-4)
    # What is left out is worth no more than what is kept.
    left = [value for decisions, value in worth.items() if decisions not in dict(labels)]
    assert max(left, default=-math.inf) <= min(worth[decisions] for decisions, _ in labels) + 1e-8


def test_the_heaviest_path_is_the_label_among_equals() -> None:
    """Equally good and equally long: both rules take the higher decisions first, as sets searched before have it."""
    paths = [ScoredPath(decisions, 0.5, True) for decisions in ((0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 0))]
    for order in itertools.permutations(paths):
        assert choose_label(order, "price", 0.4) == choose_label(order, "weighted", 0.4) == (1, 0, 0)
        ranked = [decisions for decisions, _ in choose_labels(order, "weighted", 0.4)]
        assert ranked == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]


def test_weighted_labels_by_hand() -> None:
    paths = [ScoredPath((1, 1), 0.9, True), ScoredPath((1, 0), 0.7, True), ScoredPath((0, 0), 0.1, False)]
    # Worth 0.5, 0.5, 0.1: two alike, and one that is 0.4 behind at a temperature of 0.1.
    labels = weighted(paths, 0.4, temperature=0.1)
    assert [decisions for decisions, _ in labels] == [(1, 0), (1, 1)]
    assert [weight for _, weight in labels] == [0.5, 0.5]
    assert choose_labels(paths, "price", 0.4) == [((1, 0), 1.0)]
    assert choose_labels(paths, "shortest", 0.4) == [((1, 0), 1.0)]
    assert choose_labels(paths, "weighted", 0.4) == weighted(paths, 0.4)
    assert choose_labels(paths[2:], "shortest", 0.4) == []
