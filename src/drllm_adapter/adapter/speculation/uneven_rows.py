"""Rows of one batch that grow by different numbers of tokens, side by side in one cache.

Every row ends at the last slot: one that is behind the longest begins later, with padding in front of it, as padded
prompts do. When rows have accepted different numbers of tokens, each is moved to end at the last slot again. Positions
and masks move with them, distances between the tokens of a row stay, and rotated keys keep the positions they have.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..cache import DummyLayer, RoutedEntry

PER_SLOT = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Arguments of a model with one value for each token of a row, in their last dimension."""


def can_move(cache: Cache) -> bool:
    """Whether the rows of a cache can be moved: it holds nothing but keys and values by slots."""
    movable = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
    return all(type(layer) in movable for entry in cache.layers for layer in _passes(entry))


class Rows:
    """The tokens of all rows, and the model's arguments that have one value for each of them.

    Attributes:
        ids: `[batch, slots + 1]` tokens; those of row r begin at `starts[r]`. The last one is not in the cache yet.
        starts: `[batch]` slots of padding that `generate` did not put there, in front of each row.
        arguments: those of the model, for the tokens in the cache.
        filled: tokens in the cache.
    """

    def __init__(self, model: Any, ids: Tensor, arguments: dict[str, Any], filled: int) -> None:
        self.model = model
        self.ids = ids
        self.starts = [0] * len(ids)
        self.arguments = arguments
        self.filled = filled

    def length(self, row: int) -> int:
        """Tokens of a row, the prompt's and its padding included."""
        return self.ids.shape[1] - self.starts[row]

    def tokens(self, row: int) -> Tensor:
        """Of one row, the prompt's included."""
        return self.ids[row, self.starts[row] :]

    def inputs(self, drafted: Tensor, new: int, cache: Cache) -> dict[str, Any]:
        """The model's arguments for a call with the last `new` tokens of `ids` and `drafted` `[batch, n]`."""
        arguments = self._arguments(drafted.shape[1] + 1)
        for name, value in arguments.items():
            if isinstance(value, Cache):
                arguments[name] = cache
        if "logits_to_keep" in arguments:
            arguments["logits_to_keep"] = new
        ids = torch.cat([self.ids, drafted], dim=1)
        inputs: dict[str, Any] = self.model.prepare_inputs_for_generation(ids, next_sequence_length=new, **arguments)
        return inputs

    def _arguments(self, more: int) -> dict[str, Any]:
        """The model's arguments with so many tokens after those in the cache."""
        arguments: dict[str, Any] = self.model._update_model_kwargs_for_generation(
            {}, dict(self.arguments), num_new_tokens=more
        )
        return arguments

    def extend(self, tokens: Tensor, counts: list[int], growing: list[bool], cache: Cache) -> None:
        """Append `counts[r]` tokens to each row that grows, after `n` of them went into the cache.

        Args:
            tokens: `[batch, n]`.
            counts: at most n; rows that do not grow lose what is appended.
        """
        n, before = tokens.shape[1], self.ids.shape[1]
        longest = max(self.length(row) + count for row, count in enumerate(counts) if growing[row])
        # By how much each row moves to the right.
        moves = [longest - (before + count) if grows else 0 for count, grows in zip(counts, growing, strict=True)]
        filled = self.filled + longest - before
        arguments = self._arguments(n)
        ids = torch.cat([self.ids, tokens], dim=1)
        surplus = self.filled + n - filled
        if not any(moves):
            cache.crop(-surplus)
            self.ids = ids[:, :longest]
            for name in PER_SLOT:
                if isinstance(arguments.get(name), Tensor):
                    arguments[name] = arguments[name][..., : arguments[name].shape[-1] - surplus]
        else:
            shift = torch.tensor(moves, device=ids.device)
            self.starts = [start + move for start, move in zip(self.starts, moves, strict=True)]
            self._need_mask(arguments, self.filled + n)
            for name in PER_SLOT:
                if isinstance(arguments.get(name), Tensor):
                    arguments[name] = _moved(arguments[name], shift, filled, padding=name == "attention_mask")
            self.ids = _moved(ids, shift, longest)
            for entry in cache.layers:
                for layer in _passes(entry):
                    _move(layer, shift, self.filled + n, filled)
        self.arguments, self.filled = arguments, filled

    def retire(self, row: int) -> None:
        """Let a row that has ended go on as padding with one token: no position is beyond the model's."""
        self._need_mask(self.arguments, self.filled)
        mask = self.arguments.get("attention_mask")
        if mask is not None:
            self.arguments["attention_mask"] = mask.clone()
            self.arguments["attention_mask"][row, :-1] = 0
        positions = self.arguments.get("position_ids")
        if positions is not None:
            positions = positions.expand(*positions.shape[:-2], len(self.ids), -1).clone()
            positions[..., row, :] = 0
            self.arguments["position_ids"] = positions

    def _need_mask(self, arguments: dict[str, Any], slots: int) -> None:
        """`generate` leaves the mask out where no row is padded."""
        if "attention_mask" in arguments and arguments["attention_mask"] is None:
            arguments["attention_mask"] = self.ids.new_ones(len(self.ids), slots)


def _passes(entry: Any) -> list[Any]:
    return entry.passes if isinstance(entry, RoutedEntry) else [entry]


def _sources(shift: Tensor, slots: int) -> Tensor:
    """`[batch, slots]`: where what each slot is to hold stands now, below 0 where there is nothing."""
    return torch.arange(slots, device=shift.device) - shift[:, None]


def _moved(values: Tensor, shift: Tensor, slots: int, padding: bool = False) -> Tensor:
    """`[..., batch, now]` values moved by `shift` `[batch]`, as `[..., batch, slots]`."""
    sources = _sources(shift.to(values.device), slots)
    values = values.expand(*values.shape[:-2], len(shift), -1)
    index = sources.clamp(0, values.shape[-1] - 1).expand(*values.shape[:-2], -1, -1)
    moved = values.gather(-1, index)
    return moved.masked_fill(sources < 0, 0) if padding else moved


def _move(layer: Any, shift: Tensor, before: int, after: int) -> None:
    """Move the rows of a layer that has seen `before` tokens, and let it have seen `after`."""
    if isinstance(layer, DummyLayer) or not layer.is_initialized:
        return
    sliding = isinstance(layer, DynamicSlidingWindowLayer)
    kept = min(after, layer.sliding_window - 1) if sliding else after
    stored = layer.keys.shape[-2]
    sources = _sources(shift.to(layer.keys.device), after)[:, after - kept :] - (before - stored)
    index = sources.clamp(0, stored - 1)[:, None, :, None]
    layer.keys = layer.keys.gather(2, index.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3]))
    layer.values = layer.values.gather(2, index.expand(-1, layer.values.shape[1], -1, layer.values.shape[3]))
    if sliding:
        layer.cumulative_length = after
