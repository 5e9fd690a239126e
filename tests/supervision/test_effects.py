"""Effects against data that was made with known ones, and the static paths they imply against enumeration."""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm_adapter.supervision.effects import best_by_effects, margin, predicted, regress_effects, static_at


@dataclass(frozen=True)
class Path:
    decisions: tuple[int, ...]
    probability: float
    correct: bool = False
    agreement: float | None = None
    kl: float | None = None


def made(effects: np.ndarray, questions: int, *, noise: float = 0.0, seed: int = 0) -> list[list[Path]]:
    """Questions of different difficulty whose margins are sums of the effects."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(questions):
        paths, start = [], random.normal()
        for decisions in random.integers(0, 3, (12, len(effects))):
            value = start + effects[np.arange(len(effects)), decisions].sum() + noise * random.normal()
            paths.append(Path(tuple(decisions.tolist()), 1 / (1 + math.exp(-value))))
        found.append(paths)
    return found


def drawn(blocks: int, seed: int = 1) -> np.ndarray:
    effects = np.random.default_rng(seed).normal(scale=0.2, size=(blocks, 3))
    effects[:, 1] = 0
    return effects


def test_margins() -> None:
    assert margin(0.5) == 0
    assert margin(0.8) == pytest.approx(math.log(4))
    assert (margin(0.0), margin(1.0)) == (pytest.approx(-4), pytest.approx(4))


def test_known_effects_are_found() -> None:
    effects = drawn(5)
    assert regress_effects(made(effects, 40), ridge=1e-6) == pytest.approx(effects, abs=1e-6)
    assert regress_effects(made(effects, 400, noise=0.5)) == pytest.approx(effects, abs=0.06)


def test_a_group_is_drawn_towards_its_prior() -> None:
    effects, prior = drawn(4), drawn(4, seed=2)
    assert regress_effects(made(effects, 30), prior=prior, ridge=1e-6) == pytest.approx(effects, abs=1e-6)
    assert regress_effects(made(effects, 30), prior=prior, ridge=1e9) == pytest.approx(prior, abs=1e-4)


def test_paths_without_a_score_are_left_out() -> None:
    questions = made(drawn(3), 20)
    broken = [[*paths, Path((0, 0, 0), math.nan)] for paths in questions]
    assert regress_effects(broken) == pytest.approx(regress_effects(questions))
    with pytest.raises(ValueError, match="at least one path"):
        regress_effects([[Path((0, 0, 0), math.nan)]])


@given(blocks=st.integers(1, 5), seed=st.integers(0, 50), data=st.data())
def test_the_best_path_of_so_many_passes(blocks: int, seed: int, data: st.DataObject) -> None:
    effects = drawn(blocks, seed)
    number = data.draw(st.integers(0, 2 * blocks))
    path = best_by_effects(effects, number)
    assert sum(path) == number
    values = [predicted(effects, other) for other in product((0, 1, 2), repeat=blocks) if sum(other) == number]
    assert predicted(effects, path) == pytest.approx(max(values))
    with pytest.raises(ValueError, match="passes"):
        best_by_effects(effects, 2 * blocks + 1)


@given(blocks=st.integers(1, 4), seed=st.integers(0, 50), price=st.floats(0, 3))
def test_the_static_path_at_a_price(blocks: int, seed: int, price: float) -> None:
    effects = drawn(blocks, seed)

    def worth(path: tuple[int, ...]) -> float:
        return predicted(effects, path) - price * sum(path) / blocks

    assert worth(static_at(effects, price)) == pytest.approx(max(map(worth, product((0, 1, 2), repeat=blocks))))


def test_ties_execute() -> None:
    assert static_at(np.zeros((3, 3)), 0.0) == (1, 1, 1)
    assert best_by_effects(np.zeros((3, 3)), 3) == (1, 1, 1)
