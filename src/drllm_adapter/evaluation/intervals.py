"""95 % intervals of a metric over questions, one for each kind of value wherever it is shown.

Of right and wrong answers Wilson's and, for paired differences, Agresti and Min's; of everything else a bootstrap.
"""

import math

import numpy as np
from numpy.typing import NDArray

_DRAWS = 10_000
_Z = 1.959964  # 97.5 % quantile of the normal distribution

Outcomes = NDArray[np.float64]
"""[N], the metric of each question, from 0 to 1: right or wrong, the chance of being right, or agreement."""


def interval_of_mean(each: Outcomes) -> tuple[float, float]:
    """Of the mean of a metric from 0 to 1."""
    if _is_right_or_wrong(each):
        return wilson(int(each.sum()), len(each))
    return paired_bootstrap(each, np.zeros_like(each))


def interval_of_difference(first: Outcomes, second: Outcomes) -> tuple[float, float]:
    """Of mean(first) - mean(second), the metrics of two models on the same questions."""
    if _is_right_or_wrong(first) and _is_right_or_wrong(second):
        return paired_interval(int((first > second).sum()), int((first < second).sum()), len(first))
    return paired_bootstrap(first, second)


def _is_right_or_wrong(each: Outcomes) -> bool:
    return bool(np.isin(each, (0, 1)).all())


def wilson(right: int, count: int) -> tuple[float, float]:
    """Of a share (Wilson 1927): inside [0, 1] and sensible for shares near its ends."""
    n, p = count, right / count
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    # At 0 and 1 the bound is the share itself; rounding must not push it to the other side.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def paired_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """Of a difference of paired shares (Agresti and Min 2005, Statistics in Medicine 24).

    Wald's with half a question added to each cell of the paired table, which keeps its coverage for small samples and
    for differences near zero.
    """
    n, b, c = count + 2, gained + 0.5, lost + 0.5
    centre = (b - c) / n
    half = _Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


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
