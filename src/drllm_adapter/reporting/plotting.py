"""What all figures have in common: how they are made and saved, and their colours."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..decisions import CLASS_NAMES
from ..files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, SKY_BLUE, ORANGE, GREEN = "#0072B2", "#56B4E9", "#E69F00", "#009E73"
GREY, PALE = "#999999", "#EEEEEE"
CLASS_COLOURS = dict(zip(CLASS_NAMES, (ORANGE, GREY, GREEN), strict=True))


@contextmanager
def figure(
    path: str | os.PathLike[str], width: float, height: float, width_ratios: Sequence[float] = (1,)
) -> Iterator[list["Axes"]]:
    """Give axes side by side to draw into inside the `with` block, then write them to `path` as a PNG.

    Args:
        width, height: inches.
        width_ratios: one for each of the axes.

    Raises:
        DrLLMError: the file cannot be written.
    """
    # Imported here: matplotlib is slow to load and only figures need it. No pyplot: it keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(width, height), layout="constrained"))
    drawn: list[Axes] = list(canvas.figure.subplots(1, len(width_ratios), width_ratios=width_ratios, squeeze=False)[0])
    yield drawn
    for axes in drawn:
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        canvas.figure.savefig(temporary, format="png", dpi=150)


def whole_numbers(axes: "Axes") -> None:
    """Let the x axis have ticks at whole numbers alone: blocks, passes, epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
