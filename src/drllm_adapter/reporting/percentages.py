"""Shares as people read them: in percent, and in points with the bounds of an interval."""

from collections.abc import Sequence


def percent(share: float | None, missing: str = "-") -> str:
    """`0.924` is "92.4 %"; `missing` where there is no share."""
    return missing if share is None else f"{100 * share:.1f} %"


def with_interval(share: float, interval: Sequence[float], sign: str = "") -> str:
    """`0.18` between 0.144 and 0.214 is "18.0 [14.4, 21.4]"; with the sign "+", for differences, "+18.0 [..."."""
    low, high = interval
    return f"{100 * share:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
