"""What a probe found, for people and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ...decisions import Decisions
from ...reporting.percentages import percent, with_interval
from ..compare import Estimate
from ..verdict import about, needed

BASE, STATIC, BY_LOT = "base", "the same for all prompts", "by lot, of two numbers"
BY_KIND, BY_PROMPT, HINDSIGHT = "by the kind of prompt", "by the prompt, predicted", "by the prompt, in hindsight"
_LITTLE, _MUCH = 0.01, 0.03


@dataclass(frozen=True)
class Block:
    """One block left out alone: agreement with the base and KL(base || without it), means with 95 % intervals."""

    block: int
    agreement: Estimate
    kl: Estimate


@dataclass(frozen=True)
class Shares:
    """Shares of the variance of log KL over prompts and blocks: what lies in the block, in the prompt, in the kind of
    prompt and the block together, and in the rest, which is one prompt's at one block."""

    block: float
    prompt: float
    kind: float
    rest: float


@dataclass(frozen=True)
class Point:
    """What a way of choosing keeps, with its 95 % interval, and at how many mean passes."""

    name: str
    agreement: float
    low: float
    high: float
    passes: float


@dataclass(frozen=True)
class ProbeReport:
    """What the probe found.

    Attributes:
        questions: number of prompts by kind.
        blocks: in the order in which they are left out, the cheapest first.
        by_kind, by_prompt: share of the variance of log KL beyond the blocks' means that the kind's name (None with one
            kind) and the prompt's hidden states predict, on prompts not seen.
        passes: where the ways of choosing are compared: mean block passes, a whole number.
        static_path: the path of so many passes that leaves out the cheapest blocks.
        points: each way of choosing at `passes`.
        gains: agreement of each way above the best mixture by lot, paired: what the prompt is worth. That what skips
            lose is concave in their number helps a lot as much as a router.
        above_static: agreement of each way above the static path, paired.
        curves: by way of choosing, agreement and mean passes.
    """

    num_blocks: int
    questions: dict[str, int]
    blocks: list[Block]
    shares: Shares
    by_kind: Estimate | None
    by_prompt: Estimate
    passes: int
    static_path: Decisions
    points: list[Point]
    gains: dict[str, Estimate]
    above_static: dict[str, Estimate]
    curves: dict[str, list[tuple[float, float]]]

    @property
    def verdict(self) -> str:
        """One sentence, or two."""
        gain, low, high = self.gains[BY_PROMPT]
        kept = {point.name: percent(point.agreement) for point in self.points}
        size = f"{with_interval(gain, (low, high), '+')} points"
        said = (
            f"at {self.passes} of {self.num_blocks} passes choosing by the prompt how much to leave out, as a linear "
            f"router would, keeps {kept[BY_PROMPT]} of the base's tokens, the best static path {kept[STATIC]} and the "
            f"best mixture by lot {kept[BY_LOT]}"
        )
        if gain >= _LITTLE and low > 0:
            return f"{'much' if gain >= _MUCH else 'something'} to gain: {said}. What the prompt is worth is {size}."
        if high < _MUCH:
            return f"little to gain: {said}. What the prompt is worth is {size}: nothing that is shown."
        count = sum(self.questions.values())
        more = needed(count, (low, high), max(gain, _MUCH)) - count
        return (
            f"not settled: {said}. What the prompt is worth is {size}, which may be luck; about "
            f"{about(max(more, 1)):,} prompts more would tell."
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}

    def tables(self) -> list[Table]:
        """The report for people."""
        free = Table("block left out", "agreement with the base, %", "KL", title_justify="left",
                     title="Redundancy: the cheapest and the dearest blocks")  # fmt: skip
        shown = self.blocks if len(self.blocks) <= 12 else [*self.blocks[:8], *self.blocks[-4:]]
        for block in shown:
            kl = "{:.3f} [{:.3f}, {:.3f}]".format(*block.kl)
            free.add_row(str(block.block), with_interval(block.agreement[0], block.agreement[1:]), kl)
        where = Table("of the variance of log KL", "share, %", title="Heterogeneity and predictability",
                      title_justify="left")  # fmt: skip
        where.add_row("the block's: the same for all prompts", f"{100 * self.shares.block:.1f}")
        where.add_row("the prompt's: how much can be left out of it", f"{100 * self.shares.prompt:.1f}")
        if self.by_kind is not None:
            where.add_row("the kind's: which blocks it needs", f"{100 * self.shares.kind:.1f}")
        where.add_row("one prompt's at one block", f"{100 * self.shares.rest:.1f}")
        if self.by_kind is not None:
            where.add_row("beyond the block's: told by the kind's name", _share(self.by_kind))
        where.add_row("beyond the block's: told by the hidden states", _share(self.by_prompt))
        kept = Table("blocks left out", "agreement, %", "above the same for all", "above the lot",
                     title=f"What choosing keeps at {self.passes} mean passes", title_justify="left")  # fmt: skip
        for point in self.points:
            above = [known.get(point.name) for known in (self.above_static, self.gains)]
            cells = ["" if gain is None else with_interval(gain[0], gain[1:], "+") for gain in above]
            kept.add_row(point.name, with_interval(point.agreement, (point.low, point.high)), *cells)
        return [free, where, kept]


def _share(value: Estimate) -> str:
    return with_interval(value[0], value[1:])
