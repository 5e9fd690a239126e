"""How close a path's predictions are to the base model's own, token by token of a reference."""

import math
from typing import NamedTuple

from torch import Tensor


class Fidelity(NamedTuple):
    """A path against the base model over the tokens of a reference.

    Attributes:
        agreement: share of the tokens at which no other is likelier than the base's likeliest.
        kl: mean over the tokens of KL(base || path), in nats.
    """

    agreement: float
    kl: float


def fidelity(base: Tensor, path: Tensor) -> Fidelity:
    """Compare log-probabilities `[tokens, vocabulary]` float32 of the same tokens; KL is NaN where some are NaN.

    Of the base's own tokens the likeliest count, not those of the reference: in half precision a reference that was
    generated token by token has now and then another one, and the base would not agree with itself.
    """
    if base.isnan().any() or path.isnan().any():
        return Fidelity(0.0, math.nan)
    weights = base.exp()
    # Tokens that the base rules out weigh nothing, whatever their logarithms are.
    kl = float((weights * (base - path)).where(weights > 0, 0.0).sum(dim=-1).mean())
    # Half precision has many ties at the top, which are no disagreement.
    likeliest = path.gather(-1, base.argmax(dim=-1, keepdim=True))[:, 0] >= path.amax(dim=-1)
    return Fidelity(float(likeliest.double().mean()), max(0.0, kl))
