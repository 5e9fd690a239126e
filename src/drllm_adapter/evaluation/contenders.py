"""What a router is measured against: outcomes on the same questions at the same mean number of passes.

A contender is a mixture of paths: which of two a question follows is drawn at random, so what is expected of it is the
weighted mean of what both make of it, and so is its number of passes. Comparisons are at exactly equal mean passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .intervals import Outcomes, interval_of_difference, interval_of_mean


@dataclass(frozen=True)
class Contender:
    """One row of the table of baselines.

    Attributes:
        name: what it is.
        each: [N], the metric of each question.
        passes: mean block passes a question.
        what: how it was made, in a few words.
    """

    name: str
    each: Outcomes
    passes: float
    what: str = ""

    @property
    def value(self) -> float:
        return float(self.each.mean())


def mix(low: Contender, high: Contender, passes: float) -> Contender:
    """The mixture of two contenders that makes `passes` on average; one of them where they make equally many.

    Raises:
        ValueError: `passes` is not between theirs.
    """
    if not min(low.passes, high.passes) - 1e-9 <= passes <= max(low.passes, high.passes) + 1e-9:
        raise ValueError(f"a mixture of {low.passes} and {high.passes} passes cannot make {passes}")
    if high.passes == low.passes:
        return max(low, high, key=lambda item: item.value)
    share = (passes - low.passes) / (high.passes - low.passes)
    return Contender(high.name, (1 - share) * low.each + share * high.each, passes, high.what)


def best_mixture(points: Sequence[Contender], passes: float) -> Contender:
    """The best mixture of two of the points (their upper hull) at a mean number of passes.

    Outside of what the points cover, the nearest one: with its own number of passes.
    """
    below = [point for point in points if point.passes <= passes]
    above = [point for point in points if point.passes >= passes]
    if not below or not above:
        return min(points, key=lambda point: (abs(point.passes - passes), -point.value))
    return max((mix(low, high, passes) for low in below for high in above), key=lambda item: item.value)


def comparison(routed: Contender, other: Contender) -> dict[str, Any]:
    """One row of the table as plain values: `difference` is routed minus other."""
    return {
        "name": other.name,
        "what": other.what,
        "passes": other.passes,
        "value": other.value,
        "interval": list(interval_of_mean(other.each)),
        "difference": routed.value - other.value,
        "difference_interval": list(interval_of_difference(routed.each, other.each)),
    }
