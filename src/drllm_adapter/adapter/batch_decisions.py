"""What was decided for every row of a batch, and running a block for just the rows that ask for it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..decisions import EXECUTE
from .architectures import HEADS_IN_ROWS, SHARED_BY_ROWS


class Rows:
    """Some rows of a batch: those that make a pass. Blocks that ask for the same rows share one of these."""

    def __init__(self, indices: tuple[int, ...]) -> None:
        self.indices = indices
        self._on: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def on(self, device: torch.device) -> Tensor:
        """The indices, ascending int64 `[rows]`, on `device`; copied there once."""
        if device not in self._on:
            self._on[device] = torch.tensor(self.indices, dtype=torch.long, device=device)
        return self._on[device]


class BlockDecisions:
    """One block's decision for every row of a batch."""

    def __init__(self, values: tuple[int, ...], passes: Sequence[Rows]) -> None:
        self.values = values
        self.batch_size = len(values)
        first = values[0]
        self.uniform: int | None = first if all(value == first for value in values) else None
        self.passes = passes
        """The rows of each pass that some row makes."""


class BatchDecisions:
    """The decisions of a batch, `[batch, blocks]`, block by block as they are taken.

    They are needed by the host, which skips blocks, and by the device, which cuts rows: so they are written once as
    numbers, and the rows of each pass are copied to the device once. The entries of a cache share the object of the
    prompt that filled them.
    """

    def __init__(self, batch_size: int, num_blocks: int) -> None:
        self.batch_size = batch_size
        self.blocks: list[BlockDecisions | None] = [None] * num_blocks
        self.filled = False
        """Whether the prompt has been processed by every block."""
        self._same: dict[tuple[int, ...], BlockDecisions] = {}
        self._rows: dict[tuple[int, ...], Rows] = {}
        self._taken: Taken | None = None

    @classmethod
    def all_execute(cls, batch_size: int, num_blocks: int) -> "BatchDecisions":
        """Those of the base model."""
        decisions = cls(batch_size, num_blocks)
        for block in range(num_blocks):
            decisions.decide(block, (EXECUTE,) * batch_size)
        return decisions

    def decide(self, block: int, values: Sequence[int]) -> BlockDecisions:
        """Note what was decided for `block`, one value for each row."""
        values = tuple(values)
        if values not in self._same:
            passes = [tuple(row for row, times in enumerate(values) if times > number) for number in range(max(values))]
            self._same[values] = BlockDecisions(values, [self._rows.setdefault(rows, Rows(rows)) for rows in passes])
        decided = self._same[values]
        self.blocks[block] = decided
        return decided

    @property
    def complete(self) -> bool:
        """Whether every block has decided."""
        return None not in self.blocks

    def tensor(self) -> Tensor:
        """`[batch, blocks]` int8 on the CPU; every block has decided."""
        return torch.tensor([decided.values for decided in self.blocks if decided], dtype=torch.int8).T.contiguous()

    def take(self, block: int, asked: Any, rows: Callable[[], Tensor]) -> "Taken":
        """What becomes of the decisions when row i of a new batch is row `rows()[i]` of this one.

        A cache asks once for each block, in turn: what the first one needed, the others use as well.

        Args:
            block: which block's entry asks.
            asked: what the cache was asked, the same object for all of its entries.
            rows: `[rows]` int64.
        """
        taken = self._taken
        if taken is None or taken.asked is not asked or block in taken.served:
            taken = self._taken = Taken(self, asked, rows())
        taken.served.add(block)
        return taken


class Taken:
    """Rows of a batch that become another batch: reordered for beams, selected or repeated.

    Where all rows of a block decide alike, the device need not tell the host which rows they are.
    """

    def __init__(self, before: BatchDecisions, asked: Any, rows: Tensor) -> None:
        self.asked = asked
        self.rows = rows
        self.served: set[int] = set()
        self._places: dict[int, Tensor] = {}
        mixed = any(decided is not None and decided.uniform is None for decided in before.blocks)
        self._numbers: list[int] = rows.tolist() if mixed else []
        size = len(rows)
        values = [
            None
            if decided is None
            else tuple(decided.values[row] for row in self._numbers)
            if mixed
            else decided.values[:1] * size
            for decided in before.blocks
        ]
        self.after = before  # beams mostly go on from others of their own prompt
        if values != [None if decided is None else decided.values for decided in before.blocks]:
            self.after = BatchDecisions(size, len(values))
            self.after.filled = before.filled
            for block, new in enumerate(values):
                if new is not None:
                    self.after.decide(block, new)

    def places(self, decided: BlockDecisions, number: int) -> Tensor:
        """Which of the rows that made pass `number` come next, in order: int64 on the device of `rows`."""
        if decided.uniform is not None:
            return self.rows
        made = decided.passes[number]
        if id(made) not in self._places:
            place = {row: index for index, row in enumerate(made.indices)}
            kept = [place[row] for row in self._numbers if row in place]
            self._places[id(made)] = torch.tensor(kept, dtype=torch.long, device=self.rows.device)
        return self._places[id(made)]


Cuts = dict[tuple[int, int, str | None], tuple[Any, Any]]
"""Arguments of blocks cut to some rows, for one call: most are the same objects for all of its blocks."""


def cut(cuts: Cuts, value: Any, rows: Rows, device: torch.device, batch_size: int, name: str | None = None) -> Any:
    """`select_rows`, once for the same object and the same rows; `cuts` keeps the result."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if torch.compiler.is_compiling():  # the compiler finds what is computed twice
        return select_rows(value, rows.on(device), batch_size, name)
    key = (id(value), id(rows), name)
    kept = cuts.get(key)
    if kept is None or kept[0] is not value:
        kept = cuts[key] = (value, select_rows(value, rows.on(device), batch_size, name))
    return kept[1]


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
