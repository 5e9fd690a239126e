"""Running a block for some rows of a batch: which rows make a pass, and the block's arguments for just those rows."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class RowDecisions:
    """One block's decision for every row of a batch."""

    def __init__(self, decisions: Sequence[int]) -> None:
        self.decisions = tuple(decisions)
        first = self.decisions[0]
        self.uniform: int | None = first if all(value == first for value in self.decisions) else None

    def __len__(self) -> int:
        return len(self.decisions)

    @cached_property
    def max_passes(self) -> int:
        """How many passes some row makes."""
        return max(self.decisions)

    def rows(self, number: int) -> Tensor:
        """Indices of the rows that make pass `number` (0 is the first), ascending int64 on the CPU."""
        return torch.tensor([row for row, times in enumerate(self.decisions) if times > number], dtype=torch.long)

    @cached_property
    def rows_of_pass(self) -> tuple[Tensor, ...]:
        """`rows(number)` of every pass that some row makes."""
        return tuple(self.rows(number) for number in range(self.max_passes))

    def take(self, rows: Tensor) -> "RowDecisions":
        """The decisions of a new batch whose row i is row `rows[i]` of this one."""
        return RowDecisions([self.decisions[row] for row in rows.tolist()])


def select_rows(value: Any, rows: Tensor, batch_size: int) -> Any:
    """Keep `rows` of every tensor in `value` that has one entry per row; what all rows share stays as it is.

    Works on nested tuples, lists and dicts, so on all of a block's arguments at once: masks `[batch, 1, query, key]`,
    positions `[batch, tokens]`, rotary embeddings `([batch, tokens, dim], [batch, tokens, dim])`.
    """
    if isinstance(value, Tensor):
        if value.ndim > 0 and value.shape[0] == batch_size and batch_size > 1:
            return value.index_select(0, rows.to(value.device))
        return value
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(select_rows(item, rows, batch_size) for item in value)
    if type(value) is dict:
        return {
            key: _select_alibi(item, rows, batch_size) if key == "alibi" else select_rows(item, rows, batch_size)
            for key, item in value.items()
        }
    return value


def _select_alibi(alibi: Any, rows: Tensor, batch_size: int) -> Any:
    """BLOOM and Falcon fold the heads into the batch: `[batch x heads, 1, key]`."""
    if not isinstance(alibi, Tensor) or alibi.shape[0] == 1 or alibi.shape[0] % batch_size:
        return alibi
    by_row = alibi.unflatten(0, (batch_size, -1))
    return by_row.index_select(0, rows.to(alibi.device)).flatten(0, 1)
