"""What an evaluation says, in words: better or worse, whether that may be luck, and what it would take to know."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compare import Report

_MATTERS = 0.01
"""A difference of a point is what people mean by one; smaller ones are not worth more questions."""


def verdict(report: "Report") -> str:
    """One or two sentences on base against routed, and on the baselines where there are any."""
    low, high = (100 * bound for bound in report.difference_interval)
    difference, count = 100 * report.difference, report.base.of
    p_value = "" if report.p_value is None else f" (p = {report.p_value:.2g})"
    cost = f"{report.mean_passes:.2f} of {report.num_blocks} passes"
    if report.routed.name == "agreement":
        kept, least, most = (100 * value for value in (report.routed.value, *report.routed.interval))
        said = f"the routers keep {kept:.1f} % of the base's own tokens ({least:.1f} to {most:.1f}) at {cost}."
    elif low > 0:
        size = f"by {difference:.1f} points and hardly less than {low:.1f}"
        said = f"the routers are better, {size}{p_value}, at {cost}."
    elif high < 0:
        said = (
            f"the routers are worse, by {-difference:.1f} points and hardly less than {-high:.1f}{p_value}, at {cost}."
        )
    elif report.gained == report.lost == 0:
        said = f"the routers answer all {count} questions as the base does, at {cost}."
    else:
        sought = max(abs(report.difference), _MATTERS)
        more = needed(count, report.difference_interval, sought) - count
        said = (
            f"{count} questions do not show whether the routers are better or worse: {difference:+.1f} points, between "
            f"{low:+.1f} and {high:+.1f}, may be luck, at {cost}; "
            + (
                f"a difference of {100 * sought:.1f} points would show with about {about(more):,} questions more."
                if more > 0
                else "a difference of a point would have shown."
            )
        )
    if report.baselines is None:
        return said
    left = [row for row in report.baselines.rows if row["difference_interval"][0] <= 0]
    if not left:
        closest = min(report.baselines.rows, key=lambda row: row["difference"])
        return (
            f"{said} They are better than every baseline at equal passes, the closest being {closest['name']} "
            f"({100 * closest['difference']:.1f} points behind)."
        )
    names = ", ".join(row["name"] for row in sorted(left, key=lambda row: row["difference"])[:4])
    others = f" and {len(left) - 4} others" if len(left) > 4 else ""
    return (
        f"{said} They are not shown to be better than {names}{others} at equal passes, for which no router is needed."
    )


def needed(count: int, interval: tuple[float, float], difference: float) -> int:
    """How many questions make the interval reach no further than `difference` to each side."""
    half = (interval[1] - interval[0]) / 2
    return math.ceil(count * (half / difference) ** 2)


def about(number: int) -> int:
    """To two digits: it is an estimate."""
    size = 10 ** max(0, len(str(number)) - 2)
    return math.ceil(number / size) * size
