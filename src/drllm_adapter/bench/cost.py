"""What a search of any size costs, from one measured number: the time of a block pass of a token on this device."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import track
from rich.table import Table

from ..adapter.calling import last_position
from ..adapter.stack import find_stack
from .timing import now


@dataclass(frozen=True)
class BlockCost:
    """One decoder block of a model.

    Attributes:
        weights: of the block.
        rows, tokens: of the batches that were timed.
        seconds: a block pass of one token, the median of the repetitions.
    """

    weights: int
    rows: int
    tokens: int
    seconds: float

    @property
    def operations_per_second(self) -> float:
        """Two for each weight and token; attention within a row adds little to that."""
        return 2 * self.weights / self.seconds


@dataclass(frozen=True)
class SearchSize:
    """A search whose cost is wanted.

    Attributes:
        blocks: of the model.
        tokens: prompt and answers of a question.
        avoided: share of the block passes that other paths have made already.
        devices: that work side by side, each at the measured speed.
    """

    blocks: int
    questions: int
    tokens: int
    simulations: int
    avoided: float
    devices: int

    @property
    def token_passes(self) -> float:
        """Block passes of one token that are made."""
        return self.questions * self.tokens * self.simulations * self.blocks * (1 - self.avoided)

    def seconds(self, cost: BlockCost) -> float:
        """The time in blocks; the head and everything else come on top."""
        return self.token_passes * cost.seconds / self.devices


@torch.inference_mode()
def measure_block(model: Any, rows: int, tokens: int, repetitions: int, hidden: bool) -> BlockCost:
    """Time the decoder blocks of a model on batches of random tokens, nothing else of it.

    Args:
        model: of one block or more; the mean of a block is measured.
        hidden: without a progress bar.
    """
    blocks = find_stack(model).blocks
    started, spent = 0.0, 0.0

    def begin(*_: Any) -> None:
        nonlocal started
        started = now()

    def end(*_: Any) -> None:
        nonlocal spent
        spent += now() - started

    handles = [block.register_forward_pre_hook(begin) for block in blocks]
    handles += [block.register_forward_hook(end) for block in blocks]
    ids = torch.randint(model.config.vocab_size, (rows, tokens), device=model.device)
    times = []
    try:
        for repetition in track(range(repetitions + 1), "blocks", transient=True, disable=hidden):
            spent = 0.0
            model(input_ids=ids, use_cache=False, logits_to_keep=last_position())
            if repetition:  # the first one warms up
                times.append(spent / len(blocks))
    finally:
        for handle in handles:
            handle.remove()
    weights = sum(weight.numel() for weight in blocks[0].parameters())
    return BlockCost(weights, rows, tokens, statistics.median(times) / (rows * tokens))


def cost_table(cost: BlockCost, size: SearchSize) -> Table:
    """The measured number, and what follows from it."""
    table = Table(title="Cost of a search, in decoder blocks", title_justify="left", show_header=False)
    table.add_row("weights a block", f"{cost.weights / 1e6:,.1f} M")
    table.add_row("a block pass of a token", f"{1e6 * cost.seconds:,.1f} µs")
    table.add_row("operations a second", f"{cost.operations_per_second / 1e12:.3g} T")
    table.add_row("block passes of a token", f"{size.token_passes:,.0f}")
    table.add_row("time", f"{size.seconds(cost) / 3600:,.2f} h with {size.devices} such device(s)")
    return table


def to_json(cost: BlockCost, size: SearchSize) -> dict[str, Any]:
    return {
        "block": {**asdict(cost), "operations_per_second": cost.operations_per_second},
        "search": {**asdict(size), "token_passes": size.token_passes, "seconds": size.seconds(cost)},
    }
