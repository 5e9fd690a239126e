"""What routers are trained for: to imitate one path a question, several weighted ones, or to predict effects.

An objective gives the loss of a batch's logits; whatever it is, the largest logit is the decision.
"""

import math
import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..decisions import Outcome
from ..supervision.effects import margin
from .batches import Batch
from .loss import focal_loss, weighted_cross_entropy
from .routers import Weights

Objective = Callable[[Tensor, Batch], Tensor]
"""The loss, a scalar, of logits [B, R, 3] of a batch."""


@dataclass(frozen=True)
class Imitation:
    """One path a question, the focal loss: the paper's.

    Attributes:
        class_weights: float [3].
        gamma: of the focal loss.
    """

    class_weights: Tensor
    gamma: float

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        return focal_loss(logits, batch.labels, self.class_weights, self.gamma)


@dataclass(frozen=True)
class WeightedImitation:
    """Several paths a question, each with a weight: weighted cross-entropy.

    Attributes:
        weights: float [N], of the store's examples; their mean over the training examples is 1.
    """

    weights: Tensor

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        rows = torch.from_numpy(batch.rows).to(logits.device)
        return weighted_cross_entropy(logits, batch.labels, self.weights[rows])


@dataclass(frozen=True)
class EffectRegression:
    """The margin of the right answer along every path tried is a sum of effects, one of each block's decision.

    A router predicts what skipping and repeating its block add to the margin of this question: the effect of executing
    is 0, and each question has an intercept of its own, so what remains is the variance of its paths' margins around
    the predictions. The logits z that decide are those effects against the price of a pass,
    z = sharpness x (effect - price x (passes - 1) / L), so the trained routers need no conversion.

    Attributes:
        paths: int8 [P, R], decisions of all paths tried, question by question, at the blocks with a router; mapped from
            a file, so that a set of any size needs no memory for them.
        margins: float32 [P]; NaN where the model gave no finite numbers.
        ends: int64 [N + 1], the paths of question n are those from `ends[n]` to `ends[n + 1]`.
        price: of L block passes, in margin.
        blocks: L.
        sharpness: logits for one unit of margin: how sure the routers are, which only depth control notices.
    """

    paths: NDArray[np.int8]
    margins: NDArray[np.float32]
    ends: NDArray[np.int64]
    price: float
    blocks: int
    sharpness: float = 10.0

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        first, last = self.ends[batch.rows], self.ends[batch.rows + 1]
        place = first[:, None] + np.arange((last - first).max(initial=1))
        inside = place < last[:, None]
        place = np.where(inside, place, first[:, None])
        paths = torch.from_numpy(self.paths[place]).to(logits.device).long()
        margins = torch.from_numpy(np.where(inside, self.margins[place], np.float32("nan"))).to(logits.device)
        effects = self.effects(logits)
        chosen = effects.unsqueeze(1).expand(-1, paths.shape[1], -1, -1).gather(-1, paths.unsqueeze(-1))
        tried = ~margins.isnan()
        residual = torch.where(tried, margins.nan_to_num() - chosen.squeeze(-1).sum(dim=-1), 0.0)
        counts = tried.sum(dim=1, keepdim=True).clamp(min=1)
        residual = torch.where(tried, residual - residual.sum(dim=1, keepdim=True) / counts, 0.0)
        return residual.square().sum() / tried.sum().clamp(min=1)

    @classmethod
    def of(cls, questions: Iterable[Sequence[Outcome]], layers: Sequence[int], price: float) -> "EffectRegression":
        """The regression of all paths tried on each question, at the blocks `layers` that have routers."""
        ends, blocks = array("q", [0]), 0
        with tempfile.TemporaryFile() as decisions, tempfile.TemporaryFile() as margins:  # the maps outlive them
            for tried in questions:
                blocks = len(tried[0].decisions)
                ends.append(ends[-1] + len(tried))
                np.array([[path.decisions[layer] for layer in layers] for path in tried], np.int8).tofile(decisions)
                found = [math.nan if math.isnan(path.probability) else margin(path.probability) for path in tried]
                np.array(found, np.float32).tofile(margins)
            return cls(
                np.memmap(decisions, dtype=np.int8, mode="c", shape=(ends[-1], len(layers))),
                np.memmap(margins, dtype=np.float32, mode="c", shape=(ends[-1],)),
                np.array(ends),
                price,
                blocks,
            )

    def effects(self, logits: Tensor) -> Tensor:
        """[..., 3] from the logits that decide."""
        return (logits - logits[..., 1:2]) / self.sharpness + self._cost(logits)

    def start(self, weights: Weights, effects: Tensor) -> Weights:
        """Routers that decide by average effects [R, 3], whatever they read: the best static path at this price."""
        bias = self.sharpness * (effects - self._cost(effects))
        return {**weights, "up_weight": torch.zeros_like(weights["up_weight"]), "up_bias": bias.float()}

    def _cost(self, like: Tensor) -> Tensor:
        """What a decision costs against executing, in margin: [3]."""
        return self.price * torch.tensor([-1.0, 0.0, 1.0], dtype=like.dtype, device=like.device) / self.blocks
