"""How many tokens are drafted, and what came of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import DrLLMError
from ..layer import RoutedLayer, routed_layers

BINS = 10
PRIOR = 4.0
"""So many drafted tokens count for the draft's own opinion of itself before what was seen of it outweighs it."""
MEMORY = 32
"""The usual acceptance is that of about so many drafted tokens."""
PROBE_EVERY = 16
"""Where drafting does not pay, a token is drafted in one of so many rounds, to notice when it does."""


@dataclass
class Speculation:
    """What came of the last lossless `generate`.

    Attributes:
        drafted: tokens that the route proposed, in all rows.
        accepted: those of them that the whole model would have chosen.
        draft_passes: forward passes along the route, for all rows at once.
        verifications: forward passes of all blocks, the prompt's included.
        tokens: that were generated, in all rows.
        price: a drafted token's share of the weights that a token of the whole model reads, mean over the passes.
    """

    drafted: int = 0
    accepted: int = 0
    draft_passes: int = 0
    verifications: int = 0
    tokens: int = 0
    price: float = 0.0

    @property
    def acceptance(self) -> float:
        """Accepted of the drafted tokens; 0 where none was drafted."""
        return self.accepted / max(1, self.drafted)

    def __add__(self, other: "Speculation") -> "Speculation":
        """Of both calls."""
        passes = self.draft_passes + other.draft_passes
        paid = self.price * self.draft_passes + other.price * other.draft_passes
        return Speculation(
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            passes,
            self.verifications + other.verifications,
            self.tokens + other.tokens,
            paid / max(1, passes),
        )


def last_speculation(model: nn.Module) -> Speculation:
    """Drafted and accepted tokens of the last `generate(..., custom_generate=drllm_adapter.speculate)`.

    Raises:
        DrLLMError: there was none, or the model carries no router adapter.
    """
    speculation: Speculation | None = routed_layers(model)[0].route.speculation
    if speculation is None:
        raise DrLLMError(
            "last_speculation shows what was drafted and accepted, but nothing was generated losslessly yet; call "
            "generate(..., custom_generate=drllm_adapter.speculate) first."
        )
    return speculation


class Price:
    """What a token along a route costs, as the share of the weights that a token of all blocks reads.

    Reading weights is what decoding costs. Embeddings are looked up, not read; the head is read by both.
    """

    def __init__(self, model: Any, layers: Sequence[RoutedLayer]) -> None:
        self._blocks = [sum(weight.numel() for weight in layer.base_layer.parameters()) for layer in layers]
        head = model.get_output_embeddings()
        self._head = 0 if head is None else sum(weight.numel() for weight in head.parameters())

    def __call__(self, runs: Sequence[bool]) -> float:
        """Of a route that runs these blocks."""
        read = sum(weights for weights, run in zip(self._blocks, runs, strict=True) if run)
        return (read + self._head) / max(1, sum(self._blocks) + self._head)


class DraftLength:
    """Decides, token by token, whether to draft one more: while it is likelier to be accepted than it costs.

    A drafted token is worth the chance that it and all before it are accepted, and costs its price in passes of the
    whole model. How likely a token is accepted follows from what became of earlier ones of which the draft was as
    sure. Only what the draft knew before it drew a token decides whether that token is verified, so drawing stays
    exact; and no clock is read, so the same seed draws the same.

    Args:
        most: tokens a round.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._seen = [[0, 0] for _ in range(BINS)]  # tested, accepted, by how sure the draft was
        self._usual = 1.0
        self._idle = 0

    def begins(self, price: float) -> bool:
        """Whether to draft at all in this round."""
        if price >= 1 or self.most < 1:
            return False
        if self._usual >= price or self._idle >= PROBE_EVERY:
            self._idle = 0
            return True
        self._idle += 1
        return False

    def goes_on(self, sure: Sequence[Sequence[float]], price: float) -> bool:
        """Whether to draft another token.

        Args:
            sure: for each row, how sure the draft was of each of its tokens: the probability of its likeliest one.
        """
        if len(sure[0]) >= self.most or self._usual < price:
            return False
        reached = 0.0
        for row in sure:
            chance = 1.0
            for value in row:
                chance *= self._acceptance(value)
            reached += chance / len(sure)
        return reached * self._usual >= price

    def observe(self, sure: Sequence[float], accepted: int) -> None:
        """Learn from one row: `accepted` of its tokens stand, the next one does not, the rest was not tested."""
        for place, value in enumerate(sure[: accepted + 1]):
            stands = place < accepted
            seen = self._seen[_bin(value)]
            seen[0] += 1
            seen[1] += stands
            self._usual += (stands - self._usual) / MEMORY

    def _acceptance(self, sure: float) -> float:
        tested, accepted = self._seen[_bin(sure)]
        return (accepted + PRIOR * sure) / (tested + PRIOR)


def _bin(sure: float) -> int:
    return min(int(sure * BINS), BINS - 1)
