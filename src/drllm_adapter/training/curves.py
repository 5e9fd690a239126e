"""A figure of a training's curves."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..decisions import CLASS_NAMES
from ..files import replacing
from .trainer import TrainingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#E69F00", "#009E73", "#777777"
_CLASS_COLOURS = dict(zip(CLASS_NAMES, (_ORANGE, _GREY, _GREEN), strict=True))


def plot_curves(result: TrainingResult, path: str | os.PathLike[str]) -> None:
    """Draw loss, F1 and mean passes by epoch, the kept epoch marked, as a PNG at `path`.

    Raises:
        DrLLMError: the file cannot be written.
    """
    # Imported here: matplotlib is slow to load and only this function needs it. No pyplot: it keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    history = result.history
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, f1, passes = figure.subplots(1, 3)

    _line(loss, epochs, history, "train_loss", _GREY, "training")
    _line(loss, epochs, history, "validation_loss", _BLUE, "validation")
    loss.set_ylim(bottom=0)
    loss.set_title("Loss")

    for name, colour in _CLASS_COLOURS.items():
        _line(f1, epochs, history, f"f1_{name}", colour, name)
    f1.axhline(result.metrics["static"]["macro_f1"], color=_BLUE, linestyle=":", label="macro, one path for all")
    _line(f1, epochs, history, "macro_f1", _BLUE, "macro")
    f1.set_ylim(-0.02, 1.02)
    f1.set_title("F1 on validation questions")

    _line(passes, epochs, history, "mean_passes", _BLUE, "routers")
    passes.axhline(result.metrics["label_mean_passes"], color=_BLUE, linestyle=":", label="labels")
    passes.set_title("Mean passes a question")

    for axes in (loss, f1, passes):
        axes.axvline(result.best_epoch, color="#CCCCCC", linewidth=5, alpha=0.5, zorder=0)
        axes.set_xlabel("epoch (grey band: kept)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#EEEEEE")
        axes.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _line(
    axes: "Axes", epochs: Sequence[int], history: Sequence[dict[str, Any]], name: str, colour: str, label: str
) -> None:
    # None, where no question defines a value, leaves a gap.
    values = [float("nan") if entry[name] is None else entry[name] for entry in history]
    axes.plot(epochs, values, color=colour, label=label, linewidth=1.8, marker="o", markersize=2.5)
