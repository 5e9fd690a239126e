"""What the routers' decisions are worth against the labels, and what a static choice per block would be worth."""

import numpy as np
from numpy.typing import NDArray

from ..decisions import CLASS_NAMES, REPEAT, SKIP

Labels = NDArray[np.int8]


def confusion(labels: Labels, predictions: Labels) -> NDArray[np.int64]:
    """Counts [3, 3]: row = label, column = prediction, over all elements."""
    classes = len(CLASS_NAMES)
    cells = labels.astype(np.int64).ravel() * classes + predictions.ravel()
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def decision_metrics(labels: Labels, predictions: Labels, other_blocks: int = 0) -> dict[str, float | None]:
    """How predicted decisions compare with the labels, pooled over questions and blocks.

    Args:
        labels, predictions: int8 [N, R].
        other_blocks: how many blocks without a router run once beside the R counted here; they only add to the passes.

    Returns:
        `accuracy`; `f1_skip`, `f1_execute`, `f1_repeat`; `macro_f1`, the mean over the classes that occur among the
        labels or the predictions; `skip_accuracy` and `repeat_accuracy`, the share of the blocks labelled so that are
        predicted so; `mean_passes`, block passes a question. A value is None where nothing defines it (no such label).
    """
    counts = confusion(labels, predictions)
    hits = counts.diagonal()
    labelled, predicted = counts.sum(axis=1), counts.sum(axis=0)
    f1 = [_ratio(2 * hit, total) for hit, total in zip(hits, labelled + predicted, strict=True)]
    return {
        "accuracy": _ratio(hits.sum(), counts.sum()),
        "macro_f1": float(np.mean([value for value in f1 if value is not None])),
        **{f"f1_{name}": value for name, value in zip(CLASS_NAMES, f1, strict=True)},
        "skip_accuracy": _ratio(hits[SKIP], labelled[SKIP]),
        "repeat_accuracy": _ratio(hits[REPEAT], labelled[REPEAT]),
        "mean_passes": mean_passes(predictions, other_blocks),
    }


def mean_passes(decisions: Labels, other_blocks: int = 0) -> float:
    """Block passes a question of decisions [N, R], plus one for each of the `other_blocks`."""
    return float(decisions.sum(axis=1, dtype=np.int64).mean()) + other_blocks


def static_decisions(labels: Labels) -> Labels:
    """The commonest class of each block, int8 [R]: the best that one path for all questions can do on `labels` [N, R].

    A tie goes to the lower class, the cheaper one.
    """
    counts = np.stack([(labels == value).sum(axis=0) for value in range(len(CLASS_NAMES))])
    return counts.argmax(axis=0).astype(np.int8)


def _ratio(part: np.int64 | int, whole: np.int64 | int) -> float | None:
    return float(part / whole) if whole else None
