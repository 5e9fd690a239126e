"""What a search found, counted: tallies of rows that add up over shards, processes and resumed runs."""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from rich.table import Table

from ..decisions import CLASS_NAMES, passes
from ..reporting.percentages import percent
from ..supervision.rows import Row
from .bundle import Work


@dataclass(frozen=True)
class Tally:
    """Counts of some rows.

    Attributes:
        questions, kept: searched, and those of them that have a label.
        base_right: right along the base model's own path.
        label_right: of the kept, right along the label.
        fixed, broken: wrong in the base and right along the label, and the other way round.
        passes: block passes of the labels.
        skips, executes, repeats: decisions of the labels.
        paths: scored.
        not_finite: of these, paths along which the model gave no finite numbers.
        compared, agreement: labels that were compared with the base, and their agreement with it, summed up.
    """

    questions: int = 0
    kept: int = 0
    base_right: int = 0
    label_right: int = 0
    fixed: int = 0
    broken: int = 0
    passes: int = 0
    skips: int = 0
    executes: int = 0
    repeats: int = 0
    paths: int = 0
    not_finite: int = 0
    compared: int = 0
    agreement: float = 0.0

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Tally":
        """The counts of these rows."""
        total = cls()
        for row in rows:
            label = row.decisions
            along = None if label is None else next(path for path in row.paths if path.decisions == label)
            right = along is not None and along.correct
            agreement = None if along is None else along.agreement
            decisions = label or ()
            total += cls(
                questions=1,
                kept=int(label is not None),
                base_right=int(row.base_correct),
                label_right=int(right),
                fixed=int(right and not row.base_correct),
                broken=int(label is not None and row.base_correct and not right),
                passes=passes(decisions),
                skips=decisions.count(0),
                executes=decisions.count(1),
                repeats=decisions.count(2),
                paths=len(row.paths),
                not_finite=sum(math.isnan(path.probability) for path in row.paths),
                compared=int(agreement is not None),
                agreement=agreement or 0.0,
            )
        return total

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @property
    def share_fixed(self) -> float | None:
        """Of the questions that the base got wrong, those whose label is right; None without any."""
        wrong = self.questions - self.base_right
        return self.fixed / wrong if wrong else None

    @property
    def share_broken(self) -> float | None:
        """Of the questions that the base got right, those whose label is wrong; None without any."""
        return self.broken / self.base_right if self.base_right else None


@dataclass(frozen=True)
class SearchSummary:
    """What a search found, over all rows of the set.

    Attributes:
        questions: searched.
        kept: that have a label.
        base_accuracy: share right along the base model's own path.
        label_accuracy: share of the kept questions that are right along their label.
        fixed: share of the questions the base got wrong whose label is right; None when it got none wrong.
        broken: share of the questions the base got right whose label is wrong; None when it got none right.
        mean_passes: block passes of the labels; `num_blocks` of the base.
        decisions: label decisions by class name.
        paths: scored in all.
        paths_not_finite: of these, paths along which the model gave no finite numbers; they count as wrong.
        passes_avoided: share of the paths' block passes that did not run, because another path shared them; None when
            the scorer does not say.
        padding: share of the slots in batches that held no token; None when the scorer does not say.
        seconds: of this run; a resumed run counts its own part.
        paths_per_second: of this run, all its processes together; None when it scored nothing.
        label_agreement: mean agreement with the base along the labels; None where answers are right or wrong.
    """

    questions: int
    kept: int
    base_accuracy: float
    label_accuracy: float
    fixed: float | None
    broken: float | None
    mean_passes: float
    num_blocks: int
    decisions: dict[str, int]
    paths: int
    paths_not_finite: int
    passes_avoided: float | None
    padding: float | None
    seconds: float
    paths_per_second: float | None
    label_agreement: float | None = None

    @classmethod
    def of(
        cls, tally: Tally, num_blocks: int, work: Work | None = None, *, seconds: float = 0.0, scored: int = 0
    ) -> "SearchSummary":
        """The summary of rows counted in `tally`; this run scored `scored` paths in `seconds`."""
        work = work or Work()
        counts = (tally.skips, tally.executes, tally.repeats)
        return cls(
            questions=tally.questions,
            kept=tally.kept,
            base_accuracy=tally.base_right / tally.questions,
            label_accuracy=tally.label_right / max(1, tally.kept),
            fixed=tally.share_fixed,
            broken=tally.share_broken,
            mean_passes=tally.passes / max(1, tally.kept),
            num_blocks=num_blocks,
            decisions=dict(zip(CLASS_NAMES, counts, strict=True)),
            paths=tally.paths,
            paths_not_finite=tally.not_finite,
            passes_avoided=work.avoided if work.passes else None,
            padding=work.padding if work.slots else None,
            seconds=seconds,
            paths_per_second=scored / seconds if scored else None,
            label_agreement=tally.agreement / tally.compared if tally.compared else None,
        )

    @property
    def verdict(self) -> str:
        """What the figures mean, in a sentence or two."""
        if not self.kept:
            return "no question has a label, so nothing can be learnt; try other labels, or a task that fits the model."
        tries = round(self.paths / self.questions)
        base, labels = 100 * self.base_accuracy, 100 * self.label_accuracy
        luck = (
            f"The labels are the best of about {tries} paths a question, chosen with the answer known, so part of what "
            f"they gain is luck that no router can learn; what is learnt shows in drllm eval, on other questions."
        )
        if not self.base_accuracy:
            return f"the base is right on no question: look at some answers, and at --mode, before training. {luck}"
        saved = self.num_blocks - self.mean_passes
        passes = f"{abs(saved):.2f} passes {'fewer' if saved >= 0 else 'more'}"
        return f"{labels:.1f} % are right along the labels, {base:.1f} % in the base, with {passes}. {luck}"

    @classmethod
    def from_json(cls, value: Any) -> "SearchSummary | None":
        """What `dataclasses.asdict` made of one; None for anything else."""
        try:
            return cls(**value)
        except TypeError:
            return None

    def table(self) -> Table:
        """The summary for people."""
        total = sum(self.decisions.values())
        table = Table("searched", "value", title="Search", title_justify="left")
        table.add_row("questions kept", f"{self.kept:,} of {self.questions:,}")
        if self.label_agreement is not None:
            table.add_row("agreement along the labels", percent(self.label_agreement))
        else:
            table.add_row("base accuracy", percent(self.base_accuracy))
            table.add_row("accuracy along the labels", percent(self.label_accuracy))
            table.add_row("wrong questions fixed", percent(self.fixed))
            table.add_row("right questions broken", percent(self.broken))
        table.add_row("mean passes", f"{self.mean_passes:.2f} (base: {self.num_blocks})")
        for name in CLASS_NAMES:
            table.add_row(f"decisions: {name}", percent(self.decisions[name] / total if total else None))
        speed = "" if self.paths_per_second is None else f" ({self.paths_per_second:.1f} a second)"
        table.add_row("paths scored", f"{self.paths:,}{speed}")
        if self.paths_not_finite:
            table.add_row("paths without finite numbers", f"{self.paths_not_finite:,}, counted as wrong")
        if self.passes_avoided is not None:
            table.add_row("block passes avoided", percent(self.passes_avoided))
        if self.padding is not None:
            table.add_row("padding", percent(self.padding))
        return table
