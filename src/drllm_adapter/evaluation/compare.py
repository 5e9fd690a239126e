"""Base against routed on the same questions, with intervals."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..decisions import CLASS_NAMES, Outcome, passes
from ..reporting.percentages import with_interval

if TYPE_CHECKING:
    from .baselines import BaselineTable
    from .sweep import SweepPoint

_Z = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Share:
    """A share of right answers with its 95 % interval (Wilson's score interval)."""

    right: int
    of: int

    @property
    def value(self) -> float:
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson (1927): inside [0, 1] and sensible for shares near its ends."""
        n, p = self.of, self.value
        centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        # At 0 and 1 the bound is the share itself; rounding must not push it to the other side.
        return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))

    def __str__(self) -> str:
        return with_interval(self.value, self.interval)

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval), "right": self.right, "of": self.of}


@dataclass(frozen=True)
class Part:
    """Some of the questions: those of one level (None: without one), or of one task."""

    name: int | str | None
    base: Share
    routed: Share
    mean_passes: float

    def to_json(self, kind: str) -> dict[str, Any]:
        shares = {"base": self.base.to_json(), "routed": self.routed.to_json()}
        return {kind: self.name, **shares, "mean_passes": self.mean_passes}


@dataclass(frozen=True)
class Report:
    """Base against routed.

    Attributes:
        base, routed: accuracy.
        difference: routed minus base, in shares, with the 95 % interval of the paired difference.
        gained, lost: questions that only the routed, only the base model answers rightly.
        p_value: of McNemar's exact test that gains and losses are equally likely, two-sided.
        base_probability, routed_probability: mean probability of the right answer.
        num_blocks: passes of the base.
        mean_passes: of the routed model.
        passes: how many questions took each number of passes.
        decisions: `[L][3]`, how many questions skip, execute, repeat each block.
        levels: accuracy and passes by difficulty; empty when no question has one.
        tasks: the same by task; empty when there is only one.
        baselines: the router against other ways to save passes; None when they were not asked for.
        sweep: accuracy and passes under every control; None when it was not asked for.
    """

    base: Share
    routed: Share
    difference: float
    difference_interval: tuple[float, float]
    gained: int
    lost: int
    p_value: float
    base_probability: float
    routed_probability: float
    num_blocks: int
    mean_passes: float
    passes: dict[int, int]
    decisions: list[list[int]]
    levels: list[Part]
    tasks: list[Part]
    baselines: "BaselineTable | None" = None
    sweep: "list[SweepPoint] | None" = None

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values; without `baselines` and `sweep` when they were not asked for."""
        plain = asdict(replace(self, baselines=None, sweep=None))
        del plain["baselines"], plain["sweep"]
        if self.baselines is not None:
            plain["baselines"] = self.baselines.to_json()
        if self.sweep is not None:
            plain["sweep"] = [point.to_json() for point in self.sweep]
        plain |= {"base": self.base.to_json(), "routed": self.routed.to_json()}
        plain["passes"] = {str(number): count for number, count in self.passes.items()}
        plain["levels"] = [part.to_json("level") for part in self.levels]
        plain["tasks"] = [part.to_json("task") for part in self.tasks]
        return plain

    def table(self) -> Table:
        """The report for people."""
        table = Table("questions", "n", "base, %", "routed, %", "mean passes", title="Evaluation", title_justify="left")
        named = [(str(part.name), part) for part in self.tasks]
        named += [("no level" if part.name is None else f"level {part.name}", part) for part in self.levels]
        for name, part in named:
            table.add_row(name, str(part.base.of), str(part.base), str(part.routed), f"{part.mean_passes:.2f}")
        table.add_row(
            "all", str(self.base.of), str(self.base), str(self.routed),
            f"{self.mean_passes:.2f} (base: {self.num_blocks})",
        )  # fmt: skip
        table.add_row(
            "difference", "", f"p = {self.p_value:.2g}",
            with_interval(self.difference, self.difference_interval, "+"),
            f"{self.mean_passes - self.num_blocks:+.2f}",
        )  # fmt: skip
        return table


def compare(
    base: Sequence[Outcome],
    routed: Sequence[Outcome],
    levels: Sequence[int | None],
    tasks: Sequence[str] = (),
) -> Report:
    """The report on questions that both models answered, in the same order.

    The interval of the paired difference is Agresti and Min's (2005): Wald's with half a question added to each cell
    of the paired table, which keeps its coverage for small samples and for differences near zero.

    Args:
        levels, tasks: of each question; without `tasks` all are of one.
    """
    count = len(base)
    assert count == len(routed) == len(levels) > 0
    gained = sum(after.correct and not before.correct for before, after in zip(base, routed, strict=True))
    lost = sum(before.correct and not after.correct for before, after in zip(base, routed, strict=True))
    num_blocks = len(routed[0].decisions)

    def parts(names: Sequence[Any]) -> list[Part]:
        """One for each name, in order, None last."""
        distinct = sorted(set(names), key=lambda name: (name is None, name))
        of_name = {name: [place for place in range(count) if names[place] == name] for name in distinct}
        return [
            Part(name, _share(base, places), _share(routed, places), _mean_passes(routed, places))
            for name, places in of_name.items()
        ]

    return Report(
        base=_share(base, range(count)),
        routed=_share(routed, range(count)),
        difference=(gained - lost) / count,
        difference_interval=paired_interval(gained, lost, count),
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost),
        base_probability=sum(score.probability for score in base) / count,
        routed_probability=sum(score.probability for score in routed) / count,
        num_blocks=num_blocks,
        mean_passes=_mean_passes(routed, range(count)),
        passes=dict(sorted(Counter(passes(score.decisions) for score in routed).items())),
        decisions=[[sum(score.decisions[block] == value for score in routed) for value in range(len(CLASS_NAMES))]
                   for block in range(num_blocks)],
        levels=parts(levels) if any(level is not None for level in levels) else [],
        tasks=parts(tasks) if len(set(tasks)) > 1 else [],
    )  # fmt: skip


def paired_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """95 % interval of a difference of paired shares (Agresti and Min 2005, Statistics in Medicine 24)."""
    n, b, c = count + 2, gained + 0.5, lost + 0.5
    centre = (b - c) / n
    half = _Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test (1947): a fair coin for each question that only one model answers."""
    tosses, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(tosses, heads) for heads in range(fewer + 1))
    # Whole numbers divided at the end: neither a large sum nor a small share loses anything.
    return 1.0 if 2 * tail >= 2**tosses else 2 * tail / 2**tosses


def _share(scores: Sequence[Outcome], places: Sequence[int]) -> Share:
    return Share(sum(scores[place].correct for place in places), len(places))


def _mean_passes(scores: Sequence[Outcome], places: Sequence[int]) -> float:
    return sum(passes(scores[place].decisions) for place in places) / len(places)
