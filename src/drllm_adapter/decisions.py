"""Decisions: one of skip, execute or repeat for each block, and the path they unroll to (pure Python)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from .errors import DrLLMError

SKIP, EXECUTE, REPEAT = 0, 1, 2
CLASS_NAMES = ("skip", "execute", "repeat")
_PART = re.compile(r"(\d+)(?:-(\d+)|[×x]2)?")

Decisions = tuple[int, ...]
"""One decision per block, in the order of the blocks: `len(decisions)` is the number of blocks."""


class Outcome(Protocol):
    """What came of one question along a path: `probability` is that of the right answer, NaN without finite numbers."""

    @property
    def decisions(self) -> Decisions: ...
    @property
    def probability(self) -> float: ...
    @property
    def correct(self) -> bool: ...
    @property
    def agreement(self) -> float | None: ...
    @property
    def kl(self) -> float | None: ...


def metric_name(outcomes: Sequence[Outcome]) -> str:
    """What the metric of these outcomes, all of one mode, is called."""
    return "accuracy" if outcomes[0].agreement is None else "agreement"


def metric(outcome: Outcome) -> float:
    """What an outcome counts, from 0 to 1: agreement with the base where that is measured, else 1 for right."""
    return float(outcome.correct) if outcome.agreement is None else outcome.agreement


@dataclass(frozen=True)
class ScoredPath:
    """What came of one path: the probability of the right answer, and whether the model's answer was right.

    The probability is NaN, and the answer wrong, where the model gave numbers that are not finite. `agreement` and `kl`
    are those of `scoring.plain.Score`: how close the path is to the base model, where that is what is measured.
    """

    decisions: Decisions
    probability: float
    correct: bool
    agreement: float | None = None
    kl: float | None = None


def check(decisions: Sequence[int], num_blocks: int) -> Decisions:
    """The decisions as a tuple of ints, or a `DrLLMError` when they do not describe a path of `num_blocks` blocks."""
    if len(decisions) != num_blocks:
        raise DrLLMError(
            f"decisions must have one value for each of the model's {num_blocks} blocks, but {len(decisions)} were "
            f"given; pass {num_blocks} values of 0 (skip), 1 (execute) or 2 (repeat)."
        )
    wrong = [value for value in decisions if isinstance(value, bool) or value not in (SKIP, EXECUTE, REPEAT)]
    if wrong:
        raise DrLLMError(
            f"decisions must be 0 (skip), 1 (execute) or 2 (repeat), but {wrong[0]!r} was given; correct that value."
        )
    return tuple(int(value) for value in decisions)


def execute_all(num_blocks: int) -> Decisions:
    """The path of the base model: every block once."""
    return (EXECUTE,) * num_blocks


def to_path(decisions: Sequence[int]) -> list[int]:
    """The block indices in the order they run: `(1, 0, 2)` is `[0, 2, 2]`."""
    return [block for block, times in enumerate(decisions) for _ in range(times)]


def from_path(text: str, num_blocks: int) -> Decisions:
    """The decisions of a path that somebody wrote, `0-9 12 12 13-29`; what `draw` writes in front of its sums as well.

    Raises:
        DrLLMError: it is none, blocks are out of order, or one runs more than twice.
    """
    path: list[int] = []
    for part in text.replace("·", " ").replace(",", " ").split():
        found = _PART.fullmatch(part)
        if found is None:
            raise DrLLMError(
                f"a path must be blocks and ranges of blocks, such as '0-9 12 12 13-29', but {part!r} is neither; "
                f"correct it."
            )
        first = int(found[1])
        if found[2] is not None:
            path += range(first, int(found[2]) + 1)
        else:
            path += [first] * (1 if found[0] == found[1] else 2)
    decisions = [0] * num_blocks
    for place, block in enumerate(path):
        if block >= num_blocks:
            raise DrLLMError(
                f"a path must go over blocks 0 to {num_blocks - 1}, but block {block} was given; correct it."
            )
        decisions[block] += 1
        if decisions[block] > REPEAT or (place and block < path[place - 1]):
            raise DrLLMError(
                f"a path must take blocks in their order, each at most twice and at once, but block {block} comes "
                f"{'a third time' if decisions[block] > REPEAT else f'behind block {path[place - 1]}'}; correct it."
            )
    return tuple(decisions)


def from_edits(skip: Sequence[int], repeat: Sequence[int], num_blocks: int) -> Decisions:
    """The base's path but for the blocks to skip and to repeat.

    Raises:
        DrLLMError: there is no such block, or one is named twice.
    """
    decisions = [EXECUTE] * num_blocks
    for blocks, decision in ((skip, SKIP), (repeat, REPEAT)):
        for block in blocks:
            if not 0 <= block < num_blocks or decisions[block] != EXECUTE:
                problem = "is named twice" if 0 <= block < num_blocks else "was given"
                raise DrLLMError(
                    f"blocks to skip and to repeat must be different ones from 0 to {num_blocks - 1}, but {block} "
                    f"{problem}; correct it."
                )
            decisions[block] = decision
    return tuple(decisions)


def passes(decisions: Sequence[int]) -> int:
    """How many block passes the path makes: the cost of a token, in blocks."""
    return sum(decisions)


def draw(decisions: Sequence[int]) -> str:
    """One line for people: runs of executed blocks as ranges, `·` for a skipped block, `×2` for a repeated one."""
    parts = []
    for decision, group in groupby(enumerate(decisions), key=lambda item: item[1]):
        blocks = [block for block, _ in group]
        if decision == SKIP:
            parts.append("·" * len(blocks))
        elif decision == REPEAT:
            parts.extend(f"{block}×2" for block in blocks)
        else:
            parts.append(str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]}-{blocks[-1]}")
    return f"{' '.join(parts)}  ({passes(decisions)} passes, {len(decisions)} blocks)"
