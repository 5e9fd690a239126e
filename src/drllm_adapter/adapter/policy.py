"""From a router's probabilities to decisions, within depth control and budget."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..decisions import EXECUTE, REPEAT, SKIP
from ..errors import DrLLMError
from .config import DEPTH_CONTROL_AS_TRAINED, DrLLMConfig


def blend(probabilities: Tensor, depth_control: float) -> Tensor:
    """The paper's depth control: `[..., 3]` router probabilities moved towards one decision.

    Linear between the anchors all-skip (p = -1), the router as trained (-0.5), all-execute (0.5), all-repeat (1).
    """
    if depth_control == DEPTH_CONTROL_AS_TRAINED:
        return probabilities
    one_hot = torch.eye(3, dtype=probabilities.dtype, device=probabilities.device)
    anchors = [
        (-1.0, one_hot[SKIP]),
        (DEPTH_CONTROL_AS_TRAINED, probabilities),
        (0.5, one_hot[EXECUTE]),
        (1.0, one_hot[REPEAT]),
    ]
    for (low, start), (high, end) in pairwise(anchors):
        if depth_control <= high:
            share = (depth_control - low) / (high - low)
            return torch.lerp(start.expand_as(probabilities), end.expand_as(probabilities), share)
    raise AssertionError("depth_control is checked to be in [-1, 1]")


def choose_rows(
    probabilities: Tensor, block: int, num_blocks: int, passes: Sequence[int], config: DrLLMConfig
) -> list[int]:
    """One decision for each row: the most probable that the budget allows.

    This is the one transfer from the device that a block needs at the prompt: the host must know whether to skip it
    before the next block's router can read what it hands on.

    Args:
        probabilities: `[batch, 3]` float32.
        block: of the `num_blocks` of the stack.
        passes: `[batch]`, how many the blocks before have taken.
        config: the active adapter's, for the budget.

    Raises:
        DrLLMError: a probability is not a number.
    """
    routed = config.routed_blocks(num_blocks)
    decisions = []
    for made, row in zip(passes, probabilities.tolist(), strict=True):
        if row[0] != row[0]:
            raise DrLLMError(
                f"the router of block {block} must give finite logits, but it gave NaN; the adapter's weights or the "
                f"base model's hidden states are not finite: load the adapter again."
            )
        limit = pass_limit(config.layer_budget, made, block, routed, num_blocks)
        decisions.append(choose(row, limit))
    return decisions


def choose(probabilities: Sequence[float], limit: int) -> int:
    """The likeliest decision of at most `limit` passes; the first of equals wins: a tie executes."""
    return max((item for item in (EXECUTE, SKIP, REPEAT) if item <= limit), key=probabilities.__getitem__)


def pass_limit(layer_budget: int | None, passes: int, block: int, routed: Sequence[int], num_blocks: int) -> int:
    """How many passes the budget leaves a block, when those before it made `passes`.

    Later blocks keep a reserve: one pass for each without a router, and for the others their even share of the
    budget, at most one pass each. So a tight budget thins out the whole depth instead of cutting off its end.
    """
    if layer_budget is None:
        return REPEAT
    unrouted = num_blocks - len(routed)
    routed_later = sum(later > block for later in routed)
    unrouted_later = num_blocks - 1 - block - routed_later
    share = routed_later * (layer_budget - unrouted) // len(routed)
    return layer_budget - passes - unrouted_later - min(routed_later, share)
