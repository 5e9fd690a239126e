"""Running a block for some rows of a batch: which rows make a pass, and the block's arguments for just those rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .architectures import HEADS_IN_ROWS, SHARED_BY_ROWS


class RowDecisions:
    """One block's decision for every row of a batch."""

    def __init__(self, decisions: Sequence[int]) -> None:
        self.decisions = tuple(decisions)
        self.batch_size = len(self.decisions)
        first = self.decisions[0]
        self.uniform: int | None = first if all(value == first for value in self.decisions) else None
        self.max_passes = max(self.decisions)
        """How many passes some row makes."""
        self._rows_of_pass: dict[torch.device, tuple[Tensor, ...]] = {}

    def rows(self, number: int) -> Tensor:
        """Indices of the rows that make pass `number` (0 is the first), ascending int64 on the CPU."""
        return torch.tensor([row for row, times in enumerate(self.decisions) if times > number], dtype=torch.long)

    def rows_of_pass(self, device: torch.device) -> tuple[Tensor, ...]:
        """`rows(number)` of every pass that some row makes, on `device`; copied there once."""
        if device not in self._rows_of_pass:
            self._rows_of_pass[device] = tuple(self.rows(number).to(device) for number in range(self.max_passes))
        return self._rows_of_pass[device]

    def take(self, rows: Tensor) -> "RowDecisions":
        """The decisions of a new batch whose row i is row `rows[i]` of this one."""
        return RowDecisions([self.decisions[row] for row in rows.tolist()])


def select_rows(value: Any, rows: Tensor, batch_size: int, name: str | None = None) -> Any:
    """Keep `rows` of everything in a block's arguments that has one entry per row; what all rows share stays as it is.

    One entry per row have: masks `[batch, 1, query, key]` or `[batch, key]`, positions `[batch, tokens]` (several kinds
    of them: `[kinds, batch, tokens]`), rotary embeddings `[batch, tokens, dim]`, flex attention's block masks. A
    first dimension of 1, or the only dimension (`cache_position`), is shared. The few arguments that look like one
    kind and are the other are named in architectures.py.

    Args:
        value: an argument, or nested tuples, lists and dicts of them.
        rows: `[rows kept]` int64, ascending.
        batch_size: how many rows the arguments are for.
        name: what the argument is called.
    """
    if isinstance(value, Tensor):
        if name in SHARED_BY_ROWS or batch_size == 1 or value.ndim < 2:
            return value
        if name in HEADS_IN_ROWS:
            by_row = value.unflatten(0, (batch_size, -1))
            return by_row.index_select(0, rows.to(value.device)).flatten(0, 1)
        dimension = 1 if name == "position_ids" and value.ndim == 3 else 0
        if value.shape[dimension] == batch_size:
            return value.index_select(dimension, rows.to(value.device))
        return value
    if isinstance(value, BlockMask):
        return value if value.shape[0] == 1 else _select_block_mask(value, rows)
    if type(value) in (tuple, list):
        return type(value)(select_rows(item, rows, batch_size, name) for item in value)
    if type(value) is dict:
        return {key: select_rows(item, rows, batch_size, key) for key, item in value.items()}
    return value


def _select_block_mask(mask: BlockMask, rows: Tensor) -> BlockMask:
    rows = rows.to(mask.kv_indices.device)
    whole: Any = mask.mask_mod
    selected = mask[rows]
    selected.mask_mod = lambda row, head, query, key: whole(rows[row], head, query, key)
    return selected
