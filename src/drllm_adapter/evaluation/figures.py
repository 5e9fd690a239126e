"""The figures of an evaluation."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..reporting.plotting import (
    BLUE,
    CLASS_COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    SKY_BLUE,
    figure,
    whole_numbers,
)
from .compare import Report, Share
from .probe.report import BY_KIND, BY_PROMPT, HINDSIGHT, STATIC, ProbeReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONTROLS = {"depth control": BLUE, "layer budget": SKY_BLUE, "price": GREEN}


def plot_layers(report: Report, path: str | os.PathLike[str]) -> None:
    """Draw decisions by block, the distribution of passes and accuracy (by level where there are levels) as a PNG.

    Raises:
        DrLLMError: the file cannot be written.
    """
    with figure(path, 13, 3.6, width_ratios=(1.5, 1, 1.2)) as (blocks, distribution, accuracy):
        _decisions_by_block(blocks, report.decisions, "Decisions by block")
        _passes(distribution, report)
        _accuracy(accuracy, report)


def plot_decisions(counts: ArrayLike, path: str | os.PathLike[str], *, title: str) -> None:
    """Draw which share of the questions skips, executes and repeats each block as a PNG.

    Args:
        counts: `[L, 3]`, questions by block and decision.

    Raises:
        DrLLMError: the file cannot be written.
    """
    with figure(path, 7, 3.6) as (axes,):
        _decisions_by_block(axes, counts, title)


def plot_tradeoff(report: Report, path: str | os.PathLike[str]) -> None:
    """Draw the metric against mean passes, and beside it every baseline at the routers' mean passes, as a PNG.

    Only what makes a curve lies in the plane of passes: base, routed, and every control of the sweep. Baselines make
    as many passes as the routers, so they are listed, the routers' value and interval going through them as a band.

    Raises:
        DrLLMError: the file cannot be written.
    """
    rows = sorted(report.baselines.rows, key=lambda row: row["value"]) if report.baselines else []
    rows = [row for row in rows if row["name"] != "base"]
    with figure(path, 6.5 + 4.5 * bool(rows), 4.6, width_ratios=(1.25, 1) if rows else (1,)) as (axes, *beside):
        _point(axes, report.num_blocks, report.base.value, report.base.interval, "s", "black", "base")
        for (control, colour), marker in zip(_CONTROLS.items(), "ov^", strict=True):
            points = sorted(
                (item for item in report.sweep or () if item.control in (control, "as trained")),
                key=lambda item: item.mean_passes,
            )
            if len(points) > 1:
                shares = [item.metric for item in points]
                axes.errorbar(
                    [item.mean_passes for item in points], [share.value for share in shares], yerr=_errors(shares),
                    color=colour, marker=marker, markersize=5, linewidth=1.2, elinewidth=0.7, capsize=2,
                    label=f"routed, {control}",
                )  # fmt: skip
        routed = report.routed
        _point(axes, report.mean_passes, routed.value, routed.interval, "*", BLUE, "routed, as trained", 13)
        axes.set(
            title=f"{routed.name.capitalize()} against block passes, 95 % intervals",
            xlabel="mean block passes",
            ylabel=routed.name,
        )
        axes.grid(color=PALE)
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        for listed in beside:
            _listed(listed, routed, rows, f"Baselines at {report.mean_passes:.2f} passes")


def _listed(axes: "Axes", routed: Share, rows: Sequence[dict[str, Any]], title: str) -> None:
    """A forest plot: a row for each baseline, the worst at the bottom."""
    axes.axvspan(*routed.interval, color=BLUE, alpha=0.12, linewidth=0)
    axes.axvline(routed.value, color=BLUE, linewidth=1.5)
    for place, row in enumerate(rows):
        low, high = row["interval"]
        axes.plot([low, high], [place, place], color=GREY, linewidth=1.5)
        axes.plot([row["value"]], [place], "o", color="black", markersize=4)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.set(title=title, xlabel=f"{routed.name} (blue: routed)", ylim=(-0.6, len(rows) - 0.4))
    axes.grid(axis="x", color=PALE)


def _errors(shares: Sequence[Share]) -> list[list[float]]:
    """How far their intervals reach below and above them."""
    return [
        [share.value - share.interval[0] for share in shares],
        [share.interval[1] - share.value for share in shares],
    ]


def _point(
    axes: "Axes",
    passes: float,
    value: float,
    interval: Sequence[float],
    marker: str,
    colour: str,
    label: str,
    size: float = 7,
) -> None:
    low, high = interval
    axes.errorbar(
        [passes], [value], yerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt=marker, color=colour,
        markersize=size, elinewidth=0.8, capsize=2, label=label,
    )  # fmt: skip


def _decisions_by_block(axes: "Axes", counts: ArrayLike, title: str) -> None:
    shares = np.asarray(counts, dtype=float)
    shares /= np.maximum(1, shares.sum(axis=1, keepdims=True))
    below = np.zeros(len(shares))
    for value, (name, colour) in enumerate(CLASS_COLOURS.items()):
        axes.bar(range(len(shares)), shares[:, value], bottom=below, color=colour, label=name, width=0.85)
        below += shares[:, value]
    axes.set(title=title, xlabel="block", ylabel="share of questions", ylim=(0, 1))
    whole_numbers(axes)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _passes(axes: "Axes", report: Report) -> None:
    axes.bar(list(report.passes), list(report.passes.values()), color=BLUE, width=0.85)
    axes.axvline(report.num_blocks, color="black", linewidth=1)
    axes.axvline(report.mean_passes, color=ORANGE, linewidth=2, linestyle="--")
    axes.set(
        title=f"Passes: {report.mean_passes:.2f} on average, base {report.num_blocks}",
        xlabel="block passes (line: base, dashed: mean)",
        ylabel="questions",
    )
    whole_numbers(axes)


def _accuracy(axes: "Axes", report: Report) -> None:
    parts = report.levels or (report.tasks if report.routed.name == "agreement" else [])
    groups: list[tuple[str, Share, Share]] = [(str(part.name), part.base, part.routed) for part in parts]
    groups.append(("all", report.base, report.routed))
    series = (
        (-0.12, "black", "base", [base for _, base, _ in groups]),
        (0.12, BLUE, "routed", [routed for _, _, routed in groups]),
    )
    for offset, colour, label, shares in series:
        positions = [index + offset for index in range(len(groups))]
        axes.errorbar(positions, [share.value for share in shares], yerr=_errors(shares), fmt="o", color=colour,
                      markersize=4, capsize=2, label=label)  # fmt: skip
    name = report.routed.name
    axes.set(title=f"{name.capitalize()}, 95 % intervals", ylabel=name, ylim=(-0.02, 1.02))
    axes.set_xlabel("level" if report.levels else "")
    axes.set_xticks(range(len(groups)), [name for name, *_ in groups])
    if parts and not report.levels:
        axes.tick_params("x", rotation=90)
    axes.set_xlim(-0.8, len(groups) - 0.2)  # of one group base and routed would lie at opposite edges
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.0))


def plot_probe(report: ProbeReport, path: str | os.PathLike[str]) -> None:
    """Draw what leaving out each block costs, where the differences lie, and agreement against passes as a PNG.

    Raises:
        DrLLMError: the file cannot be written.
    """
    with figure(path, 13, 4.2, width_ratios=(1.4, 0.6, 1.3)) as (alone, shares, curves):
        blocks = sorted(report.blocks, key=lambda block: block.block)
        values = [block.agreement for block in blocks]
        alone.errorbar(
            [block.block for block in blocks], [value for value, *_ in values],
            yerr=[[value - low for value, low, _ in values], [high - value for value, _, high in values]],
            fmt="o", markersize=4, linewidth=1, color=BLUE,
        )  # fmt: skip
        alone.set(title="One block left out", xlabel="block", ylabel="agreement with the base", ylim=(-0.02, 1.02))
        alone.grid(color=PALE)
        whole_numbers(alone)
        _variance_shares(shares, report)
        for name, colour, style in (
            (HINDSIGHT, GREY, ":"), (BY_PROMPT, BLUE, "-"), (BY_KIND, GREEN, "-"), (STATIC, ORANGE, "-")
        ):  # fmt: skip
            if name in report.curves:
                reached = sorted({(spent, kept) for kept, spent in report.curves[name]})
                marker = "o" if name == STATIC else ""
                curves.plot(*zip(*reached, strict=True), style, marker=marker, markersize=4, color=colour, label=name)
        mixed = [(kept, spent) for kept, spent in report.curves[STATIC]]
        curves.plot(
            *zip(*_upper_hull(mixed), strict=True), "--", color=ORANGE, linewidth=1, label="mixtures of these by lot"
        )
        curves.axvline(report.passes, color="black", linewidth=0.6)
        curves.set(title="Agreement by how the skips are chosen", xlabel="mean block passes (line: compared there)",
                   ylabel="agreement with the base")  # fmt: skip
        curves.grid(color=PALE)
        curves.legend(frameon=False, fontsize=8)


def _upper_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (value, passes) the corners (passes, value) that no mixture of two others lies above."""
    hull: list[tuple[float, float]] = []
    for value, spent in sorted(points, key=lambda point: point[1]):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (spent - hull[-2][0]) <= (value - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((spent, value))
    return hull


def _variance_shares(axes: "Axes", report: ProbeReport) -> None:
    """Above each other the shares of the variance of log KL; hatched what the prompt foretells beyond the block's."""
    shares = report.shares
    parts = [("the block's", shares.block, GREY), ("the prompt's", shares.prompt, BLUE),
             ("the kind's", shares.kind, GREEN), ("the rest", shares.rest, PALE)]  # fmt: skip
    below = 0.0
    for name, share, colour in parts:
        if name != "the kind's" or report.by_kind is not None:
            axes.bar([0], [share], bottom=below, width=0.5, color=colour, label=name)
            below += share
    different = 1 - shares.block
    axes.bar([0.6], [max(0.0, report.by_prompt[0]) * different], bottom=shares.block, width=0.5, color="white",
             edgecolor=BLUE, hatch="///", label="foretold by the prompt")  # fmt: skip
    axes.set(title="Variance of log KL", xlim=(-0.4, 1.0), ylim=(0, 1.02), xticks=[])
    axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02))
