"""What one step of the engine knows of its requests: their routes, and the attention metadata of any of them alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from ..decisions import EXECUTE
from .routes import Route


@dataclass(frozen=True)
class Batch:
    """All requests of a step, as the attention layers see them.

    Attributes:
        starts: `[requests + 1]`, where the tokens of each begin in the packed batch.
        groups: the kinds of attention layers: what builds their metadata, and the requests' metadata for it.
        group_of: by the name of an attention layer its place in `groups`.
    """

    starts: NDArray[np.int32]
    groups: Sequence[tuple[Any, CommonAttentionMetadata]]
    group_of: Mapping[str, int]


@dataclass(frozen=True)
class Part:
    """Some requests of a step: the places of their tokens, and by group their metadata and slots in the cache."""

    tokens: Tensor
    metadata: Sequence[tuple[Any, Tensor]]


@dataclass
class Plan:
    """Routes and batch of one step; parts are made once for all blocks that the same requests run."""

    routes: Sequence[Route]
    batch: Batch
    decisions: NDArray[np.int8] = field(init=False)
    deciding: list[int] = field(init=False)
    _parts: dict[bytes, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.decisions = np.stack([route.decisions for route in self.routes])
        self.deciding = [row for row, route in enumerate(self.routes) if route.undecided]

    @property
    def is_plain(self) -> bool:
        """Whether every request runs every block once."""
        return not self.deciding and bool((self.decisions == EXECUTE).all())

    def decide(self, block: int, decisions: Sequence[int]) -> None:
        """Take down what the routers decided for the deciding requests."""
        for row, decision in zip(self.deciding, decisions, strict=True):
            self.routes[row].decisions[block] = self.decisions[row, block] = decision

    def prompt_tokens(self, row: int) -> slice:
        start = int(self.batch.starts[row])
        return slice(start, start + self.routes[row].prompt_tokens)

    def part(self, wanted: NDArray[np.bool_]) -> Part:
        """The requests for which `wanted` `[requests]` is true."""
        key = wanted.tobytes()
        if key not in self._parts:
            self._parts[key] = self._cut(np.flatnonzero(wanted))
        return self._parts[key]

    def _cut(self, rows: NDArray[np.int64]) -> Part:
        lengths = np.diff(self.batch.starts)[rows]
        starts = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(lengths, out=starts[1:])
        places = np.repeat(self.batch.starts[:-1][rows] - starts[:-1], lengths) + np.arange(starts[-1])
        device = self.batch.groups[0][1].seq_lens.device
        cpu_rows, tokens = torch.from_numpy(rows), torch.from_numpy(places.astype(np.int64)).to(device)
        rows_there, starts_cpu = cpu_rows.to(device), torch.from_numpy(starts)
        metadata = []
        for builder, whole in self.batch.groups:
            longest = whole.seq_lens_cpu_upper_bound
            assert longest is not None
            common = CommonAttentionMetadata(
                query_start_loc=starts_cpu.to(device),
                query_start_loc_cpu=starts_cpu,
                seq_lens=whole.seq_lens[rows_there],
                seq_lens_cpu_upper_bound=longest[cpu_rows],
                num_reqs=len(rows),
                num_actual_tokens=int(starts[-1]),
                max_query_len=int(lengths.max()),
                max_seq_len=int(longest[cpu_rows].max()),
                block_table_tensor=whole.block_table_tensor[rows_there],
                slot_mapping=whole.slot_mapping[tokens],
                causal=True,
                positions=None if whole.positions is None else whole.positions[tokens],
                is_prefilling=None if whole.is_prefilling is None else whole.is_prefilling[cpu_rows],
            )
            metadata.append((builder.build_metadata(common), common.slot_mapping))
        return Part(tokens, metadata)

    @contextmanager
    def only(self, part: Part, names: Sequence[str]) -> Iterator[None]:
        """Within, the attention layers of these names see this part of the batch and nothing else."""
        context = get_forward_context()
        before = {name: (context.attn_metadata[name], context.slot_mapping[name]) for name in names}
        try:
            for name in names:
                metadata, slots = part.metadata[self.batch.group_of[name]]
                context.attn_metadata[name], context.slot_mapping[name] = metadata, slots
            yield
        finally:
            for name, (metadata, slots) in before.items():
                context.attn_metadata[name], context.slot_mapping[name] = metadata, slots


class Current:
    """Where the runner leaves the plan of the step for the blocks; None in profiling and dummy runs."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
