"""Shares as people read them: in percent, and in points with the bounds of an interval."""

from collections.abc import Sequence


def percent(share: float | None, missing: str = "-") -> str:
    """`0.924` is "92.4 %"; `missing` where there is no share."""
    return missing if share is None else f"{100 * share:.1f} %"


def with_interval(share: float, interval: Sequence[float], sign: str = "") -> str:
    """`0.18` between 0.144 and 0.214 is "18.0 [14.4, 21.4]"; with the sign "+", for differences, "+18.0 [..."."""
    # Adding zero takes the sign from what is rounded to zero.
    points, low, high = (round(100 * value, 1) + 0.0 for value in (share, *interval))
    return f"{points:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
