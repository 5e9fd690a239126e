"""Gradients for routers inside an ordinary language-model training.

A decision is an argmax and has no gradient. In training mode each block therefore computes all three outcomes for every
row; the forward value is the chosen one, the gradient that of the mixture by the router's probabilities
(straight-through estimator, Bengio et al. 2013, arXiv 1308.3432).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def mix(outcomes: Sequence[Tensor], decisions: Sequence[int], probabilities: Tensor) -> Tensor:
    """The chosen outcome of every row, with a gradient to the probabilities of all of them.

    Args:
        outcomes: hidden states `[batch, tokens, width]` after skipping, executing and repeating the block.
        decisions: `[batch]`, which one was chosen.
        probabilities: `[batch, 3]` float32.
    """
    chosen = F.one_hot(torch.tensor(decisions, device=probabilities.device), len(outcomes))
    # In this order the values are exactly zero and one.
    weights = (chosen + (probabilities - probabilities.detach())).to(outcomes[0].dtype)
    # Products of elements and no matrix product, which autocast would round.
    products = [
        _finite(outcome, chosen[:, choice, None, None]) * weights[:, choice, None, None]
        for choice, outcome in enumerate(outcomes)
    ]
    return products[0] + products[1] + products[2]


def _finite(outcome: Tensor, chosen: Tensor) -> Tensor:
    """An outcome that was not chosen may overflow float16, and zero times infinity is not zero."""
    return torch.where(chosen.bool(), outcome, outcome.nan_to_num()) if outcome.dtype == torch.float16 else outcome


class DepthPenalty(torch.autograd.Function):
    """Adds `penalty x expected passes / L`, averaged over the rows, to whatever loss the hidden states end up in.

    The tuner never sees the loss, so the term joins in the backward pass: its own gradient there is one.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, penalty: Tensor) -> Tensor:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.ones((), dtype=torch.float32, device=gradient.device)


def expected_passes(probabilities: Tensor) -> Tensor:
    """Mean over the rows of the passes that the probabilities `[batch, 3]` lead one to expect: a scalar."""
    times = torch.arange(3, dtype=probabilities.dtype, device=probabilities.device)
    return (probabilities * times).sum(dim=1).mean()
