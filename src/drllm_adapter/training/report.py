"""What a training says of itself: the file of its report, and the three lines that a person wants to read."""

import math
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


def verdict_line(metrics: dict[str, Any]) -> str:
    """Whether the routers tell questions apart, in words."""
    routers, static = metrics["routers"]["macro_f1"], metrics["static"]["macro_f1"]
    questions, better = metrics["validation_questions"], routers > static
    # Two standard errors of a share from so many questions; decisions of one question are hardly independent.
    luck = 1 / math.sqrt(questions)
    certain = "" if abs(routers - static) > luck else f", which may be luck on {questions:,} questions"
    what = "tell questions apart better" if better else "tell questions apart no better"
    return (
        f"verdict   the routers {what} than one path for all ({routers:.3f} against {static:.3f}){certain}; what it is "
        f"worth in answers shows drllm eval"
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
