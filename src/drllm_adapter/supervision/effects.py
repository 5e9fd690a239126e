"""What each decision does to the answer on average: a regression over all paths tried, and static paths from it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decisions import CLASS_NAMES, EXECUTE, REPEAT, Decisions, Outcome

Effects = NDArray[np.float64]
"""float64 [L, 3]: what skipping, executing (always 0) and repeating a block adds to the margin of the right answer."""

MARGIN_OF_PROBABILITY = 4.0
"""What a little probability is worth in log-odds where both answers are equally likely: 1 / (p (1 - p)) at p = 1/2."""

_CLIP = 4.0
# As much as this many observations without any effect: keeps what was hardly tried near zero.
_RIDGE = 10.0


def margin(probability: float) -> float:
    """The log-odds of the right answer, log(p / (1 - p)), between -4 and 4: beyond, it is as good as 0 or 1."""
    lowest = 1 / (1 + math.exp(_CLIP))
    inside = min(max(probability, lowest), 1 - lowest)
    return math.log(inside / (1 - inside))


class Regression:
    """Least squares of the margins on the decisions, each question with an intercept of its own.

    Keeps two sums, so that a set of any size can be gone through once.
    """

    def __init__(self) -> None:
        self._gram: Any = 0.0
        self._product: Any = 0.0

    def add(self, paths: Sequence[Outcome]) -> None:
        """Count the paths tried on one question."""
        finite = [path for path in paths if not math.isnan(path.probability)]
        if not finite:
            return
        design = _indicators(np.array([path.decisions for path in finite]))
        margins = np.array([margin(path.probability) for path in finite])
        # The intercept of the question: both sides without their means.
        design = design - design.mean(axis=0)
        margins = margins - margins.mean()
        self._gram = self._gram + design.T @ design
        self._product = self._product + design.T @ margins

    def effects(self, prior: Effects | None = None, ridge: float = _RIDGE) -> Effects:
        """What came of it.

        Args:
            prior: what the effects are drawn towards, and are where nothing was counted; None is zero. A group's are
                drawn to those of all questions.
            ridge: how strongly, in observations.

        Raises:
            ValueError: no path with a score was counted, and there is no prior.
        """
        if isinstance(self._gram, float):
            if prior is None:
                raise ValueError("a regression needs at least one path with a score")
            return prior
        before = np.zeros(len(self._product)) if prior is None else prior[:, [0, 2]].ravel()
        change = np.linalg.solve(self._gram + ridge * np.eye(len(before)), self._product - self._gram @ before)
        effects = np.zeros((len(before) // 2, len(CLASS_NAMES)))
        effects[:, [0, 2]] = (before + change).reshape(-1, 2)
        return effects


def regress_effects(
    questions: Iterable[Sequence[Outcome]], prior: Effects | None = None, ridge: float = _RIDGE
) -> Effects:
    """The effects of a `Regression` over the paths tried on each question."""
    regression = Regression()
    for paths in questions:
        regression.add(paths)
    return regression.effects(prior, ridge)


def _indicators(decisions: NDArray[np.int64]) -> NDArray[np.float64]:
    """[paths, 2 L]: whether each block is skipped, whether it is repeated."""
    edited = np.stack([decisions == 0, decisions == REPEAT], axis=-1)
    return edited.reshape(len(decisions), -1).astype(np.float64)


def best_by_effects(effects: Effects, passes: int) -> Decisions:
    """The path of `passes` passes with the highest sum of effects (dynamic programming over the blocks).

    Of equals, the one that leaves earlier blocks as they are.

    Raises:
        ValueError: no path makes that many passes.
    """
    blocks = len(effects)
    if not 0 <= passes <= REPEAT * blocks:
        raise ValueError(f"a path of {blocks} blocks makes 0 to {REPEAT * blocks} passes, not {passes}")
    # value[n]: the best sum of the blocks from here on with n passes.
    value = np.full(passes + 1, -np.inf)
    value[0] = 0.0
    choices: list[NDArray[np.int64]] = []
    for effect in effects[::-1]:
        options = np.full((len(CLASS_NAMES), passes + 1), -np.inf)
        for decision in range(len(CLASS_NAMES)):
            options[decision, decision:] = value[: passes + 1 - decision] + effect[decision]
        order = [EXECUTE, 0, REPEAT]
        best = options[order].argmax(axis=0)
        choices.append(np.array(order)[best])
        value = options.max(axis=0)
    decisions, left = [], passes
    for choice in choices[::-1]:
        decisions.append(int(choice[left]))
        left -= decisions[-1]
    return tuple(decisions)


def predicted(effects: Effects, decisions: Decisions) -> float:
    """The sum of the effects along a path: how far it is from the base model's margin."""
    return float(effects[np.arange(len(decisions)), list(decisions)].sum())


def static_at(effects: Effects, price: float) -> Decisions:
    """The path of highest predicted margin minus `price` for L block passes; a tie executes."""
    order = [EXECUTE, 0, REPEAT]
    worth = effects - price * np.arange(len(CLASS_NAMES)) / len(effects)
    return tuple(order[choice] for choice in worth[:, order].argmax(axis=1).tolist())
