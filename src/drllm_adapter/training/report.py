"""What a training says of itself: the file of its report, and the three lines that a person wants to read."""

from typing import Any

from torch import Tensor

from ..decisions import CLASS_NAMES
from ..reporting.percentages import percent
from .loss import class_counts


def data_line(train_questions: int, validation_questions: int, examples: int, routers: int, labels: Tensor) -> str:
    """What is trained on; `labels` are the training labels, int [N, R], `examples` how many paths in all."""
    shares = ", ".join(
        f"{percent(count / labels.numel())} {name}"
        for count, name in zip(class_counts(labels).tolist(), CLASS_NAMES, strict=True)
    )
    several = examples > train_questions + validation_questions
    return (
        f"data      {train_questions:,} training and {validation_questions:,} validation questions"
        f"{f' along {examples:,} paths' if several else ''}, {routers} routers; "
        f"labels: {shares}"
    )


def training_line(metrics: dict[str, Any], best: dict[str, Any]) -> str:
    """What the training did; `best` is the history's entry of the best epoch."""
    return (
        f"training  {metrics['epochs']} epochs of {metrics['steps_per_epoch']} steps, {metrics['seconds']:.1f} s, "
        f"{metrics['weights']:,} weights; lowest validation loss {best['validation_loss']:.4f} after epoch "
        f"{best['epoch']}"
    )


def result_line(metrics: dict[str, Any]) -> str:
    """What came out on the validation questions, beside the best that one path for all questions does."""
    routers, static = metrics["routers"], metrics["static"]
    skips, repeats = (percent(routers[f"{name}_accuracy"], "none") for name in ("skip", "repeat"))
    return (
        f"result    macro F1 {routers['macro_f1']:.3f} (one path for all: {static['macro_f1']:.3f}); found "
        f"{skips} of the skips, {repeats} of the repeats; "
        f"{routers['mean_passes']:.2f} passes on average (labels: {metrics['label_mean_passes']:.2f})"
    )
