"""The figures of an evaluation."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..decisions import CLASS_NAMES, REPEAT, SKIP
from ..reporting.plotting import (
    BLUE,
    CLASS_COLOURS,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    SKY_BLUE,
    VERMILION,
    figure,
    whole_numbers,
)
from .compare import Report, Share
from .probe.report import BY_PROMPT, BY_TASK, STATIC, ProbeReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONTROLS = {"depth control": BLUE, "layer budget": SKY_BLUE, "price": GREEN}
# More than Okabe and Ito have; markers tell them apart as well.
_BASELINE_COLOURS = (GREY, ORANGE, VERMILION, PURPLE, "#777777", "#B8860B", "#555555", "#8B4513", "#800080")


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
    """Draw accuracy against mean passes as a PNG: base, routed, every control of the sweep and every baseline it has.

    Raises:
        DrLLMError: the file cannot be written.
    """
    with figure(path, 9, 5.2) as (axes,):
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
        _point(axes, report.mean_passes, routed.value, routed.interval, "*", BLUE, "routed, as trained", 15)
        # Those at equal passes would hide each other: spread by a little, in the order of the table.
        rows = [row for row in (report.baselines.rows if report.baselines else []) if row["name"] != "base"]
        for place, row in enumerate(rows):
            offset = 0.008 * report.num_blocks * (place - (len(rows) - 1) / 2)
            colour, marker = _BASELINE_COLOURS[place % len(_BASELINE_COLOURS)], "DPXhp<>dH8"[place % 10]
            _point(axes, row["passes"] + offset, row["value"], row["interval"], marker, colour, row["name"], 6)
        axes.set(
            title=f"{report.routed.name.capitalize()} against block passes, 95 % intervals",
            xlabel="mean block passes" + (" (baselines at the routers' mean, drawn side by side)" if rows else ""),
            ylabel=report.routed.name,
        )
        axes.grid(color=PALE)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


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
    axes.legend(frameon=False, fontsize=8)


def plot_probe(report: ProbeReport, path: str | os.PathLike[str]) -> None:
    """Draw the effect of every single edit, the shares of the variance, and accuracy against passes as a PNG.

    Raises:
        DrLLMError: the file cannot be written.
    """
    with figure(path, 13, 3.8, width_ratios=(1.6, 0.7, 1.2)) as (effects, shares, curves):
        for decision, offset in ((SKIP, -0.15), (REPEAT, 0.15)):
            name = CLASS_NAMES[decision]
            chosen = [effect for effect in report.effects if effect.decision == decision]
            values = [100 * effect.probability[0] for effect in chosen]
            half = [100 * (effect.probability[2] - effect.probability[0]) for effect in chosen]
            effects.errorbar([effect.block + offset for effect in chosen], values, yerr=half, fmt="o", markersize=3,
                             linewidth=1, color=CLASS_COLOURS[name], label=name)  # fmt: skip
        effects.axhline(0, color="black", linewidth=0.8)
        effects.set(title="One block skipped or repeated", xlabel="block", ylabel="change of p(right answer), points")
        whole_numbers(effects)
        effects.legend(frameon=False, fontsize=8)
        _variance_shares(shares, report)
        colours = {STATIC: ORANGE, BY_TASK: GREEN, BY_PROMPT: BLUE}
        for name, points in report.curves.items():
            reached = sorted({(spent, accuracy) for accuracy, spent in points})
            curves.plot(*zip(*reached, strict=True), marker=".", color=colours.get(name, GREY), label=name)
        base = report.policies[0]
        curves.plot([base.mean_passes], [base.accuracy], "*", markersize=11, color="black", label="base")
        curves.set(title="Accuracy at different prices of a pass", xlabel="mean passes", ylabel="share right")
        curves.legend(frameon=False, fontsize=8)


def _variance_shares(axes: "Axes", report: ProbeReport) -> None:
    """Above each other the shares of the variance; hatched what of the differences the prompt predicts."""
    parts = [("all questions alike", report.static[0], GREY)]
    if report.task is not None:
        parts.append(("between tasks", report.task[0], ORANGE))
    parts.append(("between questions", report.question[0], BLUE))
    below = 0.0
    for name, share, colour in parts:
        axes.bar([0], [max(0.0, share)], bottom=below, width=0.5, color=colour, label=name)
        below += max(0.0, share)
    different = 1 - max(0.0, report.static[0])
    axes.bar([0.6], [max(0.0, report.by_prompt[0]) * different], bottom=1 - different, width=0.5, color="white",
             edgecolor=BLUE, hatch="///", label="predicted from the prompt")  # fmt: skip
    axes.set(title="Variance that paths make", xlim=(-0.4, 1.0), ylim=(0, 1.02), xticks=[])
    axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.02))
