"""What a router is measured against: outcomes on the same questions at the same mean number of passes.

A contender is a mixture of paths: which of two a question follows is drawn at random, so what is expected of it is the
weighted mean of what both make of it, and so is its number of passes. Comparisons are at exactly equal mean passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outcomes = NDArray[np.float64]
"""float64 [N]: the metric of each question, from 0 to 1: right or wrong, the chance of being right, or agreement."""

_DRAWS = 10_000


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


def paired_bootstrap(first: Outcomes, second: Outcomes, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of mean(first) - mean(second), questions drawn with replacement (Efron 1979).

    Paired: both outcomes of a question are drawn together, so what makes a question easy for both cancels.

    Args:
        first, second: [N], the outcomes of two models on the same questions.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # Differences take few values: how often each is drawn is multinomial, which is the same draw without a [draws, N]
    # table of indices.
    values, counts = np.unique(difference, return_counts=True)
    drawn = generator.multinomial(len(difference), counts / counts.sum(), size=_DRAWS)
    low, high = np.quantile(drawn @ values / len(difference), (0.025, 0.975))
    return float(low), float(high)


def comparison(routed: Contender, other: Contender) -> dict[str, Any]:
    """One row of the table as plain values: `difference` is routed minus other."""
    low, high = paired_bootstrap(routed.each, other.each)
    own_low, own_high = paired_bootstrap(other.each, np.zeros_like(other.each))
    return {
        "name": other.name,
        "what": other.what,
        "passes": other.passes,
        "value": other.value,
        "interval": [own_low, own_high],
        "difference": routed.value - other.value,
        "difference_interval": [low, high],
    }
