"""Static paths: all of them or a fair draw, and the accuracy they reach between whole numbers of passes."""

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compare import Outcome

from drllm_adapter.evaluation import best_static_at, score_static_paths, static_paths


@given(blocks=st.integers(1, 6), passes=st.integers(-1, 13))
def test_all_paths_are_found(blocks: int, passes: int) -> None:
    everything = [path for path in product((0, 1, 2), repeat=blocks) if sum(path) == passes]
    assert static_paths(blocks, passes, 10_000) == everything
    assert static_paths(blocks, passes, len(everything)) == everything


@pytest.mark.parametrize(("passes", "count"), [(0, 1), (1, 32), (63, 32), (64, 1)])
def test_deep_models_with_few_paths_are_quick(passes: int, count: int) -> None:
    paths = static_paths(32, passes, 50)
    assert len(set(paths)) == len(paths) == count
    assert {sum(path) for path in paths} == {passes}


@given(blocks=st.integers(3, 40), share=st.floats(0.1, 1.9), limit=st.integers(1, 5), seed=st.integers(0, 9))
def test_drawn_paths(blocks: int, share: float, limit: int, seed: int) -> None:
    passes = round(share * blocks)
    paths = static_paths(blocks, passes, limit, seed)
    assert paths == static_paths(blocks, passes, limit, seed)
    assert len(set(paths)) == len(paths) <= limit
    assert all(len(path) == blocks and sum(path) == passes and set(path) <= {0, 1, 2} for path in paths)


def test_every_path_is_equally_likely() -> None:
    everything = static_paths(5, 4, 1000)
    drawn = Counter(static_paths(5, 4, 1, seed)[0] for seed in range(3000))
    assert set(drawn) == set(everything)
    expected = 3000 / len(everything)
    chi_square = sum((drawn[path] - expected) ** 2 / expected for path in everything)
    degrees = len(everything) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_scores_of_each_path() -> None:
    def score(along: list[tuple[int, ...]]) -> list[Outcome]:
        assert len(along) == 4
        # Question i is right when the path has more than i passes.
        return [Outcome(sum(path) > number, 0.5, path) for number, path in enumerate(along)]

    results = score_static_paths([(0, 0), (1, 2), (1, 1)], 4, score)
    assert [item.decisions for item in results] == [(0, 0), (1, 2), (1, 1)]
    assert [(item.accuracy.right, item.accuracy.of) for item in results] == [(0, 4), (3, 4), (2, 4)]


def test_between_whole_numbers_two_paths_are_mixed() -> None:
    best = {4: 0.3, 5: 0.6, 6: 0.8}
    assert best_static_at(5, best) == pytest.approx(0.6)
    assert best_static_at(5.25, best) == pytest.approx(0.65)
    assert best_static_at(4, {4: 0.3}) == pytest.approx(0.3)
    # A dip is bridged: half the questions at 4 and half at 6 passes make 5 on average.
    assert best_static_at(5, {4: 0.7, 5: 0.2, 6: 0.9}) == pytest.approx(0.8)


def test_paths_around_the_mean_are_needed() -> None:
    with pytest.raises(ValueError, match=r"5\.50 passes are needed"):
        best_static_at(5.5, {4: 0.1, 5: 0.2})


@given(
    best=st.dictionaries(st.integers(0, 8), st.floats(0, 1), min_size=1),
    weights=st.lists(st.floats(0.01, 1), min_size=9, max_size=9),
)
def test_no_mixture_of_static_paths_does_better(best: dict[int, float], weights: list[float]) -> None:
    shares = {passes: weights[passes] for passes in best}
    total = sum(shares.values())
    mean = sum(passes * share for passes, share in shares.items()) / total
    mean = min(max(mean, min(best)), max(best))
    accuracy = sum(best[passes] * share for passes, share in shares.items()) / total
    assert best_static_at(mean, best) >= accuracy - 1e-9
