"""The focal loss with class weights from the effective number of samples.

Sources: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002; Cui et al., Class-Balanced Loss Based on
Effective Number of Samples, arXiv 1901.05555.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decisions import CLASS_NAMES
from ..errors import DrLLMError

LARGEST_RATIO = 10.0


def class_counts(labels: Tensor) -> Tensor:
    """How often each class occurs in `labels` (integers of any shape): int64 [3]."""
    return torch.bincount(labels.long().flatten(), minlength=len(CLASS_NAMES))


def effective_number_weights(labels: Tensor, beta: float = 0.999) -> Tensor:
    """Weights of the three classes, (1 - beta) / (1 - beta^n_c), scaled so that the mean over the classes present is 1.

    The counts n_c pool the labels of all blocks: blocks that are nearly always executed then still learn from the
    common weights, where counts per block would blow up the one odd label of such a block. A class that does not
    occur gets weight 0. No class weighs more than `LARGEST_RATIO` times the lightest one (our bound, not in the paper,
    and only felt below about a hundred labels of a class): otherwise a handful of labels decides the validation loss,
    stops the training early and spoils the other classes.

    Args:
        labels: integers 0, 1, 2 of any shape.
        beta: in [0, 1); 0 weighs all classes present alike, towards 1 they are weighed by inverse frequency.

    Returns:
        float32 [3].

    Raises:
        DrLLMError: fewer than two classes occur, so there is nothing to tell apart.
    """
    counts = class_counts(labels)
    present = counts > 0
    if int(present.sum()) < 2:
        found = ", ".join(name for name, seen in zip(CLASS_NAMES, present.tolist(), strict=True) if seen) or "none"
        raise DrLLMError(
            f"the labels to train on must have at least two of skip, execute and repeat, but only {found} was found; "
            f"search with more simulations or choose another label rule."
        )
    # float64: 1 - 0.999^n has lost half of float32's digits at n = 1.
    weights = (1.0 - beta) / (1.0 - torch.pow(beta, counts.double())).where(present, 1.0)
    weights = weights.clamp_max(LARGEST_RATIO * weights[present].min()).where(present, 0.0)
    return (weights * present.sum() / weights.sum()).float()


def focal_loss(logits: Tensor, labels: Tensor, class_weights: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over all elements of -w_y (1 - p_y)^gamma log p_y.

    The mean divides by the number of elements, not by the sum of their weights, so the loss of a set is the mean of
    the losses of its mini-batches.

    Args:
        logits: float [..., 3].
        labels: int64 [...], values 0, 1, 2.
        class_weights: float [3].
        gamma: 0 or more; 0 is weighted cross entropy.

    Returns:
        A scalar.
    """
    log_probability = F.log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    # The floor keeps the gradient finite where p has rounded to 1 and gamma is below 1.
    miss = (-torch.expm1(log_probability)).clamp_min(torch.finfo(logits.dtype).tiny)
    return -(class_weights[labels] * miss.pow(gamma) * log_probability).mean()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over all elements of -weight log p_y, each example with a weight of its own.

    Args:
        logits: float [B, R, 3].
        labels: int64 [B, R], values 0, 1, 2.
        weights: float [B]; with a mean of 1 over the set, losses compare with those of equal weights.

    Returns:
        A scalar.
    """
    of_element = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (weights * of_element.mean(dim=1)).mean()
