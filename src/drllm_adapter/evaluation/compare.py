"""Base against routed on the same questions, with intervals."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ..decisions import CLASS_NAMES, Outcome, metric, metric_name, passes
from ..reporting.percentages import with_interval
from .intervals import interval_of_difference, paired_bootstrap, wilson

if TYPE_CHECKING:
    from .baselines import BaselineTable
    from .sweep import SweepPoint

Estimate = tuple[float, float, float]
"""A value and the bounds of its 95 % interval."""


@dataclass(frozen=True)
class Share:
    """The mean of a metric from 0 to 1 over some questions, with its 95 % interval.

    Attributes:
        right: the sum over the questions; of accuracy, how many are right.
        of: questions.
        name: "accuracy" or "agreement".
        bootstrapped: the interval of a metric that is not 0 or 1; None is Wilson's score interval.
    """

    right: float
    of: int
    name: str = "accuracy"
    bootstrapped: tuple[float, float] | None = None

    @classmethod
    def of_outcomes(cls, outcomes: Sequence[Outcome]) -> "Share":
        each = np.array([metric(outcome) for outcome in outcomes])
        if metric_name(outcomes) == "accuracy":
            return cls(int(each.sum()), len(each))
        interval = paired_bootstrap(each, np.zeros_like(each))
        return cls(float(each.sum()), len(each), metric_name(outcomes), interval)

    @property
    def value(self) -> float:
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        if self.bootstrapped is not None:
            return self.bootstrapped
        return wilson(int(self.right), self.of)

    def __str__(self) -> str:
        return with_interval(self.value, self.interval)

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval), "right": self.right, "of": self.of}


@dataclass(frozen=True)
class Part:
    """Some of the questions: those of one level (None: without one), or of one task or kind of prompt.

    Attributes:
        kl: mean KL(base || routed) over the questions' references with its interval; None where it is not measured.
    """

    name: int | str | None
    base: Share
    routed: Share
    mean_passes: float
    kl: Estimate | None

    @classmethod
    def of_outcomes(cls, name: int | str | None, base: Sequence[Outcome], routed: Sequence[Outcome]) -> "Part":
        passed = [passes(outcome.decisions) for outcome in routed]
        return cls(name, Share.of_outcomes(base), Share.of_outcomes(routed), sum(passed) / len(passed), mean_kl(routed))

    def to_json(self, kind: str) -> dict[str, Any]:
        shares = {"base": self.base.to_json(), "routed": self.routed.to_json()}
        kl = {} if self.kl is None else {"kl": list(self.kl)}
        return {kind: self.name, **shares, "mean_passes": self.mean_passes, **kl}


def mean_kl(outcomes: Sequence[Outcome]) -> Estimate | None:
    """Mean KL(base || path) with its 95 % bootstrap interval; None where some outcome has none."""
    each = np.array([math.nan if outcome.kl is None else outcome.kl for outcome in outcomes])
    if np.isnan(each).any():
        return None
    return float(each.mean()), *paired_bootstrap(each, np.zeros_like(each))


@dataclass(frozen=True)
class Report:
    """Base against routed.

    Attributes:
        base, routed: accuracy, or agreement with the base, which the base has in full.
        difference: routed minus base, in shares, with the 95 % interval of the paired difference.
        gained, lost: questions on which the routed, on which the base model is better.
        p_value: of McNemar's exact test that gains and losses are equally likely, two-sided; None for agreement, in
            which there is nothing to gain.
        kl: see `Part`.
        base_probability, routed_probability: mean probability of the right answer.
        num_blocks: passes of the base.
        mean_passes: of the routed model.
        passes: how many questions took each number of passes.
        decisions: `[L][3]`, how many questions skip, execute, repeat each block.
        levels: the same by difficulty; empty when no question has one.
        tasks: the same by task or kind of prompt; empty when there is only one.
        baselines: the router against other ways to save passes; None when they were not asked for.
        sweep: the metric and passes under every control; None when it was not asked for.
    """

    base: Share
    routed: Share
    difference: float
    difference_interval: tuple[float, float]
    gained: int
    lost: int
    p_value: float | None
    kl: Estimate | None
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
        plain["metric"] = self.routed.name
        plain |= {"base": self.base.to_json(), "routed": self.routed.to_json()}
        plain["passes"] = {str(number): count for number, count in self.passes.items()}
        plain["levels"] = [part.to_json("level") for part in self.levels]
        plain["tasks"] = [part.to_json("task") for part in self.tasks]
        return plain

    def table(self) -> Table:
        """The report for people."""
        if self.p_value is None:
            return self._table_of_agreement()
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
            "difference", "", "",
            with_interval(self.difference, self.difference_interval, "+"),
            f"{self.mean_passes - self.num_blocks:+.2f}",
        )  # fmt: skip
        return table

    def _table_of_agreement(self) -> Table:
        table = Table("prompts", "n", "agreement with the base, %", "KL", "mean passes", title="Evaluation",
                      title_justify="left")  # fmt: skip
        whole = Part("all", self.base, self.routed, self.mean_passes, self.kl)
        for part in (*self.tasks, whole):
            kl = "-" if part.kl is None else "{:.3f} [{:.3f}, {:.3f}]".format(*part.kl)
            blocks = f" (base: {self.num_blocks})" if part is whole else ""
            table.add_row(str(part.name), str(part.routed.of), str(part.routed), kl, f"{part.mean_passes:.2f}{blocks}")
        return table


def compare(
    base: Sequence[Outcome],
    routed: Sequence[Outcome],
    levels: Sequence[int | None],
    tasks: Sequence[str] = (),
) -> Report:
    """The report on questions that both models answered, in the same order.

    Args:
        levels, tasks: of each question; without `tasks` all are of one.
    """
    count = len(base)
    assert count == len(routed) == len(levels) > 0
    before, after = (np.array([metric(outcome) for outcome in outcomes]) for outcomes in (base, routed))
    gained, lost = int((after > before).sum()), int((after < before).sum())
    is_accuracy = metric_name(routed) == "accuracy"
    num_blocks = len(routed[0].decisions)

    def parts(names: Sequence[Any]) -> list[Part]:
        """One for each name, in order, None last."""
        distinct = sorted(set(names), key=lambda name: (name is None, name))
        of_name = {name: [place for place in range(count) if names[place] == name] for name in distinct}
        return [
            Part.of_outcomes(name, [base[place] for place in places], [routed[place] for place in places])
            for name, places in of_name.items()
        ]

    whole = Part.of_outcomes(None, base, routed)
    return Report(
        base=whole.base,
        routed=whole.routed,
        difference=float((after - before).mean()),
        difference_interval=interval_of_difference(after, before),
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost) if is_accuracy else None,
        kl=whole.kl,
        base_probability=sum(score.probability for score in base) / count,
        routed_probability=sum(score.probability for score in routed) / count,
        num_blocks=num_blocks,
        mean_passes=whole.mean_passes,
        passes=dict(sorted(Counter(passes(score.decisions) for score in routed).items())),
        decisions=[[sum(score.decisions[block] == value for score in routed) for value in range(len(CLASS_NAMES))]
                   for block in range(num_blocks)],
        levels=parts(levels) if any(level is not None for level in levels) else [],
        tasks=parts(tasks) if len(set(tasks)) > 1 else [],
    )  # fmt: skip


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test (1947): a fair coin for each question that only one model answers."""
    tosses, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(tosses, heads) for heads in range(fewer + 1))
    # Whole numbers divided at the end: neither a large sum nor a small share loses anything.
    return 1.0 if 2 * tail >= 2**tosses else 2 * tail / 2**tosses
