"""A figure of a training's curves."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..reporting.plotting import BLUE, CLASS_COLOURS, GREY, PALE, figure, whole_numbers
from .refine import Refined
from .trainer import TrainingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_curves(result: TrainingResult, path: str | os.PathLike[str]) -> None:
    """Draw loss, F1 and mean passes by epoch, the kept epoch marked, as a PNG at `path`.

    Raises:
        DrLLMError: the file cannot be written.
    """
    history = result.history
    epochs = [entry["epoch"] for entry in history]
    with figure(path, 11, 3.4, width_ratios=(1, 1, 1)) as (loss, f1, passes):
        _line(loss, epochs, history, "train_loss", GREY, "training")
        _line(loss, epochs, history, "validation_loss", BLUE, "validation")
        loss.set_ylim(bottom=0)
        loss.set_title("Loss")

        for name, colour in CLASS_COLOURS.items():
            _line(f1, epochs, history, f"f1_{name}", colour, name)
        f1.axhline(result.metrics["static"]["macro_f1"], color=BLUE, linestyle=":", label="macro, one path for all")
        _line(f1, epochs, history, "macro_f1", BLUE, "macro")
        f1.set_ylim(-0.02, 1.02)
        f1.set_title("F1 on validation questions")

        _line(passes, epochs, history, "mean_passes", BLUE, "routers")
        passes.axhline(result.metrics["label_mean_passes"], color=BLUE, linestyle=":", label="labels")
        passes.set_title("Mean passes a question")

        for axes in (loss, f1, passes):
            axes.axvline(result.best_epoch, color="#CCCCCC", linewidth=5, alpha=0.5, zorder=0)
            axes.set_xlabel("epoch (grey band: kept)")
            whole_numbers(axes)
            axes.grid(axis="y", color=PALE)
            axes.legend(frameon=False, fontsize=8)


def plot_refinement(result: Refined, path: str | os.PathLike[str]) -> None:
    """Draw reward, passes and entropy by step as a PNG at `path`: of the sampled paths, and of the held-out prompts'.

    Raises:
        DrLLMError: the file cannot be written.
    """
    steps = [entry for entry in result.history if "reward" in entry]
    looks = [entry for entry in result.history if "validation_reward" in entry]
    with figure(path, 11, 3.4, width_ratios=(1, 1, 1)) as (reward, passes, entropy):
        for axes, sampled, held_out, title in (
            (reward, "reward", "validation_reward", "Reward, before passes are paid for"),
            (passes, "mean_passes", "validation_passes", "Mean passes a prompt"),
        ):
            _line(axes, [entry["step"] for entry in steps], steps, sampled, GREY, "sampled paths")
            _line(axes, [entry["step"] for entry in looks], looks, held_out, BLUE, "held-out prompts, likeliest path")
            axes.set_title(title)
        _line(entropy, [entry["step"] for entry in steps], steps, "entropy", GREY, "sampled paths")
        entropy.set_ylim(bottom=0)
        entropy.set_title("Entropy, nats a decision")
        for axes in (reward, passes, entropy):
            axes.set_xlabel("step")
            whole_numbers(axes)
            axes.grid(axis="y", color=PALE)
            axes.legend(frameon=False, fontsize=8)


def _line(
    axes: "Axes", epochs: Sequence[int], history: Sequence[dict[str, Any]], name: str, colour: str, label: str
) -> None:
    # None, where no question defines a value, leaves a gap.
    values = [float("nan") if entry[name] is None else entry[name] for entry in history]
    axes.plot(epochs, values, color=colour, label=label, linewidth=1.8, marker="o", markersize=2.5)
