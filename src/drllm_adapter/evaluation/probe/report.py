"""What a probe found, for people and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ...decisions import Decisions
from ...reporting.percentages import percent, with_interval
from ..compare import Estimate

BASE, STATIC, BY_KIND = "base", "the same for all prompts", "by the kind of prompt"
BY_PROMPT, HINDSIGHT = "by the prompt, predicted", "by the prompt, in hindsight"
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
        passes: where the ways of choosing are compared: mean block passes.
        static_path: the path of about so many passes that leaves out the cheapest blocks.
        points: each way of choosing at `passes`.
        gains: agreement of each way above the same for all prompts, paired.
        curves: by way of choosing, agreement and mean passes.
    """

    num_blocks: int
    questions: dict[str, int]
    blocks: list[Block]
    shares: Shares
    by_kind: Estimate | None
    by_prompt: Estimate
    passes: float
    static_path: Decisions
    points: list[Point]
    gains: dict[str, Estimate]
    curves: dict[str, list[tuple[float, float]]]

    @property
    def verdict(self) -> str:
        """One sentence, or two."""
        gain, low, _ = self.gains[BY_PROMPT]
        best = self.gains[HINDSIGHT][0]
        at = f"at {self.passes:g} of {self.num_blocks} passes"
        kept = next(point.agreement for point in self.points if point.name == STATIC)
        said = f"the best static path keeps {percent(kept)} of the base's tokens {at}"
        if gain >= _LITTLE and low > 0:
            much = "much" if gain >= _MUCH else "something"
            return (
                f"{much} to gain: {said}; choosing how much to leave out by the prompt, as a linear router would, "
                f"keeps {100 * gain:.1f} points more, and hindsight {100 * best:.1f}."
            )
        return (
            f"little to gain: {said}; what can be left out of a prompt is not clearly foretold by it "
            f"({100 * gain:+.1f} points), though hindsight keeps {100 * best:.1f} points more."
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
        kept = Table("blocks left out", "mean passes", "agreement, %", "above the same for all", title_justify="left",
                     title="What choosing keeps")  # fmt: skip
        for point in self.points:
            gain = self.gains.get(point.name)
            kept.add_row(point.name, f"{point.passes:.2f}", with_interval(point.agreement, (point.low, point.high)),
                         "" if gain is None else with_interval(gain[0], gain[1:], "+"))  # fmt: skip
        return [free, where, kept]


def _share(value: Estimate) -> str:
    return with_interval(value[0], value[1:])
