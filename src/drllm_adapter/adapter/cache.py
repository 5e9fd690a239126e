"""Where each pass of each block keeps its keys and values, row by row.

A transformers `Cache` is a list of layers, one per block. Routing replaces each by a `RoutedEntry`, which holds one
ordinary cache layer per pass (none for a skipped block), with only the rows that make the pass. While a pass runs, its
layer takes the entry's place in the list, so that attention reads and writes it as it always does. Everything
transformers does to a cache between the blocks - reorder for beams, crop, select, repeat, reset, offload - reaches the
entries, so rows and routes stay together, and the caller's own cache object stays the one that is filled.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache, cache_utils
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    QuantizedLayer,
)

from ..decisions import EXECUTE
from ..errors import DrLLMError
from .batch_decisions import BatchDecisions, BlockDecisions

# For blocks that keep nothing; transformers has had it since 5.23.
DummyLayer: Any = getattr(cache_utils, "DummyLayer", type("DummyLayer", (), {}))

# What a layer keeps of tokens, as its class calls it.
_CONTENT = frozenset(
    {
        "keys",
        "values",
        "indexer_keys",
        "conv_states",
        "recurrent_states",
        "_quantized_keys",
        "_quantized_values",
    }
)


class RoutedEntry:
    """The cache entry of one block: one ordinary cache layer for each pass that some row makes.

    Its subclasses add the base class by which transformers tells keys and values from recurrent states.
    """

    supports_early_init = False

    def __init__(self, layer: Any) -> None:
        # The mixins' own __init__ would set attributes that are answered by the passes here.
        self._blank = _emptied(layer) if _is_allocated(layer) else layer
        # Of the whole batch and stack, and which block of it this is.
        self.route: BatchDecisions | None = None
        self.block = 0
        self.passes: list[Any] = []
        # Keeps the length of a block that every row skips: a layer of the same class with one number per token, so
        # that lengths, mask sizes and cropping follow that class's own rules (sliding windows included).
        self._ledger: Any = None
        self._not_in_ledger = 0
        self._was_cropped = False
        # Training mode ran the block with all three outcomes, of which no cache entry is kept.
        self.only_trained = False
        self.is_sliding = bool(getattr(layer, "is_sliding", False))

    @property
    def decisions(self) -> BlockDecisions | None:
        """Those that this entry was filled along; None when it is empty."""
        return None if self.route is None else self.route.blocks[self.block]

    def __repr__(self) -> str:
        made = None if self.decisions is None else self.decisions.values
        return f"{type(self).__name__}(decisions={made}, passes={self.passes})"

    def blank(self) -> Any:
        """The plain cache layer that this entry stands in for, empty."""
        return self._blank

    def start(self, route: BatchDecisions, block: int) -> None:
        """Begin a sequence: one empty entry for each pass that some row makes of `block`, which has just decided."""
        self.route, self.block = route, block
        decided = route.blocks[block]
        assert decided is not None
        self.passes = [_another(self._blank) for _ in decided.passes]
        self._ledger = None if self.passes else _empty_ledger(self._blank)
        self._not_in_ledger, self._was_cropped = 0, False

    def refuse_if_only_trained(self) -> None:
        """Refuse to go on from a call in training mode."""
        if self.only_trained:
            raise DrLLMError(
                "a cache must come from a call in evaluation mode to be continued, but this one was given to a call in "
                "training mode, which keeps nothing in it; call eval() first and begin with a new cache."
            )

    def skip(self, tokens: int) -> None:
        """Note that `tokens` tokens went by while every row skipped the block.

        They enter the ledger when it is looked at, which few blocks' ever is: a skipped block costs nothing. A compiled
        graph would be compiled again for every number of them, so there they enter at once.
        """
        self._not_in_ledger += tokens
        if self.is_compileable:
            self._bring_ledger_up_to_date()

    def _bring_ledger_up_to_date(self) -> None:
        if self._not_in_ledger:
            _note_tokens(self._ledger, self._not_in_ledger)
            self._not_in_ledger = 0

    # What mask code asks of a cache layer is answered by the first pass.

    @property
    def _current(self) -> Any:
        if self.passes:
            return self.passes[0]
        self._bring_ledger_up_to_date()
        return self._ledger if self._ledger is not None else self._blank

    def _refuse_to_be_written(self) -> NoReturn:
        raise _filled_along_a_route()

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        self._current.lazy_initialization(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Reached only for names that are not defined above: keys, values, device, sliding_window, record_past, ...
        if name.startswith("__") or "_blank" not in self.__dict__:
            raise AttributeError(name)
        return self._whole(name, getattr(self._current, name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CONTENT:
            self._whole(name, value)
            setattr(self._current, name, value)
        else:
            super().__setattr__(name, value)

    def _whole(self, name: str, value: Any) -> Any:
        """What is kept of a block, for code that takes caches apart: compresses, moves or converts them.

        Raises:
            DrLLMError: some row makes another number of passes than one, so there is no such tensor for the block.
        """
        decided = self.decisions
        if decided is None or decided.uniform == EXECUTE or name not in _CONTENT:
            return value
        raise DrLLMError(
            f"{name} of block {self.block} must be what all rows keep of one pass, but its rows make "
            f"{list(decided.values)} passes, each with an entry of its own; take the cache apart by "
            f"cache.layers[{self.block}].passes, whose rows are cache.layers[{self.block}].decisions.passes, or "
            f"compress and move it where every block executes."
        )

    # Also says that the layer is longer than its tokens, so that masks must never be left out. Of some layers it is an
    # attribute, of others a property.
    is_compileable: Any = property(lambda self: self._blank.is_compileable)

    @property
    def is_initialized(self) -> bool:
        return self._current.is_initialized

    @property
    def is_croppable(self) -> bool:
        # States can be put back or not depending on what they hold, so the passes are asked.
        return all(layer.is_croppable for layer in self.passes or [self._blank])

    @property
    def batch_size(self) -> int:
        """Rows of the whole batch, those that skip the block included."""
        return self._current.batch_size if self.decisions is None else self.decisions.batch_size

    # What changes the whole cache reaches every pass.

    def _all(self) -> list[Any]:
        self._bring_ledger_up_to_date()
        return self.passes + ([self._ledger] if self._ledger is not None else [])

    def offload(self) -> None:
        for layer in self.passes:
            layer.offload()

    def prefetch(self) -> None:
        for layer in self.passes:
            layer.prefetch()

    def activate_past_recording(self) -> None:
        for layer in [self._blank, *self._all()]:
            if hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()

    def crop(self, tokens_to_remove: int) -> None:
        self._was_cropped = True
        for layer in self._all():
            layer.crop(tokens_to_remove)

    def reset(self) -> None:
        self.route, self.passes, self._ledger, self._not_in_ledger = None, [], None, 0
        self.only_trained = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take(beam_idx, lambda: beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        # Whichever way rows are told: by their numbers, from the end, or by a mask.
        self._take(indices, lambda: torch.arange(self.batch_size, device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._take(repeats, lambda: torch.arange(self.batch_size).repeat_interleave(repeats))

    def _take(self, asked: Any, rows: Callable[[], Tensor]) -> None:
        """Make row `rows()[i]` of the batch its row i, in every pass."""
        before = self.decisions
        if self.route is None or before is None:
            return
        taken = self.route.take(self.block, asked, rows)
        for number, layer in enumerate(self.passes):
            places = taken.places(before, number)
            if len(places):
                layer.reorder_cache(places)
        self.route = taken.after
        decided = self.decisions
        assert decided is not None
        # Rows that leave the batch may have been the only ones to make a pass.
        if not decided.passes and self.passes:
            self._ledger = _empty_ledger(self._blank)
            _note_tokens(self._ledger, _length(self.passes[0]))
        del self.passes[len(decided.passes) :]

    def is_filled(self) -> bool:
        """Whether it holds tokens. Asked at every token, so a length on the device is not looked at without need."""
        if self.route is not None and self.route.filled and not self._was_cropped:
            return True
        return _is_filled(self)


class RoutedCacheLayer(RoutedEntry, CacheLayerMixin):  # type: ignore[override]
    """For blocks with attention: keys and values."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._refuse_to_be_written()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._current.get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        return self._current.get_seq_length()

    def get_max_length(self) -> int:
        return self._current.get_max_length()

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        return self._whole("keys", self.passes[0].keys if self.passes else None)

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        return self._whole("values", self.passes[0].values if self.passes else None)


class RoutedStateLayer(RoutedEntry, LinearAttentionCacheLayerMixin):  # type: ignore[override, unused-ignore]
    """For blocks with linear attention, state spaces or convolutions: states of a fixed size."""

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Tensor:
        self._refuse_to_be_written()

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Tensor:
        self._refuse_to_be_written()


class RoutedHybridLayer(RoutedStateLayer, RoutedCacheLayer):  # type: ignore[override]
    """For blocks that have both."""


class RoutedFullHybridLayer(RoutedHybridLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[override, misc]
    """Those whose attention is full: transformers tells them from the rest by this class, to size masks."""


class RoutedDummyLayer(RoutedEntry, DummyLayer):
    """For blocks that keep nothing, such as a block that is only an MLP: the route alone."""


def _entry_class(layer: Any) -> type[RoutedEntry]:
    if isinstance(layer, DummyLayer):
        return RoutedDummyLayer
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return RoutedCacheLayer
    if isinstance(layer, LinearAttentionAndFullAttentionLayer):
        return RoutedFullHybridLayer
    return RoutedHybridLayer if isinstance(layer, CacheLayerMixin) else RoutedStateLayer


def find_cache(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among the arguments of a call.

    By its type: what the argument is called differs between architectures and between versions of transformers.

    Raises:
        DrLLMError: it is not made of layers.
    """
    for values in (kwargs.values(), args):
        for value in values:
            if isinstance(value, Cache):
                if not hasattr(value, "layers"):
                    raise DrLLMError(
                        f"the cache must be a transformers Cache made of layers (DynamicCache, StaticCache, ...), but "
                        f"a {type(value).__name__} was given; pass one of those or none."
                    )
                return value
    return None


def routed_entry(cache: Cache, block: int) -> RoutedEntry:
    """The routed entry of `block` in `cache`, put in place of the plain one on first use.

    Raises:
        DrLLMError: the cache's layers cannot hold several passes.
    """
    layers: list[Any] = cache.layers
    while len(layers) <= block:
        if cache.layer_class_to_replicate is None:
            raise DrLLMError(
                f"the cache must have a layer for every block, but it has {len(layers)} and block {block} asks for "
                f"one; make the cache with the model's own config."
            )
        layers.append(cache.layer_class_to_replicate())
    if not isinstance(layers[block], RoutedEntry):
        layers[block] = _entry_class(layers[block])(layers[block])
    entry: RoutedEntry = layers[block]
    return entry


def route_of(cache: Cache, num_blocks: int, batch_size: int) -> BatchDecisions:
    """The decisions that a cache with tokens was filled along. Without any the base model filled it: all execute.

    Args:
        cache: it holds tokens.
        num_blocks: how many blocks are going to run.
        batch_size: rows, where the base model filled it.

    Raises:
        DrLLMError: it holds a part of a prompt, or was given to a call in training mode.
    """
    layers = cache.layers[:num_blocks]
    entries = [layer for layer in layers if isinstance(layer, RoutedEntry)]
    route = entries[0].route if entries else None
    # Compared, and not looked up by id: a compiled step would be for this cache alone.
    one_route = all(entry.route is route for entry in entries)
    if route is not None and one_route and len(entries) == num_blocks and route.filled:
        return route
    check_kept(cache)
    decided = [layer.decisions if isinstance(layer, RoutedEntry) else None for layer in layers]
    if not any(decided):
        return BatchDecisions.all_execute(batch_size, num_blocks)
    if None in decided or len(decided) < num_blocks:
        raise DrLLMError(
            f"a cache must hold a whole prompt to be continued, but {decided.count(None)} of its {len(decided)} "
            f"layers hold nothing of the one that the others were filled with: its call was interrupted or "
            f"refused; begin with a new cache."
        )
    # Entries were replaced or changed one by one.
    found = [block for block in decided if block is not None]
    joint = BatchDecisions(found[0].batch_size, num_blocks)
    for block, (entry, taken) in enumerate(zip(entries, found, strict=True)):
        joint.decide(block, taken.values)
        entry.route = joint
    joint.filled = True
    return joint


def routed_entries(cache: Cache, num_blocks: int, batch_size: int) -> list[RoutedEntry]:
    """The entries of a cache with tokens; those that the base model filled are put into routed ones.

    Args:
        cache, num_blocks, batch_size: see `route_of`.
    """
    route = route_of(cache, num_blocks, batch_size)
    for block, layer in enumerate(list(cache.layers)):
        if not isinstance(layer, RoutedEntry):
            entry = routed_entry(cache, block)
            entry.start(route, block)
            entry.passes = [layer]
    return list(cache.layers)  # type: ignore[arg-type]


def check_base_route(cache: Cache) -> None:
    """Refuse to go on in the base model with a cache in which not every block executed.

    Raises:
        DrLLMError: some row skipped or repeated a block.
    """
    for entry in cache.layers:
        if isinstance(entry, RoutedEntry) and entry.decisions is not None and entry.decisions.uniform != EXECUTE:
            raise _filled_along_a_route()


def check_kept(cache: Cache) -> None:
    """Refuse a cache that was given to a call in training mode.

    Raises:
        DrLLMError: it was.
    """
    for entry in cache.layers:
        if isinstance(entry, RoutedEntry):
            entry.refuse_if_only_trained()


def _filled_along_a_route() -> DrLLMError:
    return DrLLMError(
        "this cache was filled along a route and must be continued with the same router adapter enabled, but the base "
        "model was to write to it; enable the adapter again or begin with a new cache."
    )


def has_tokens(cache: Cache) -> bool:
    """Whether the cache holds tokens: keys and values have a length, states only a flag."""
    return any(layer.is_filled() if isinstance(layer, RoutedEntry) else _is_filled(layer) for layer in cache.layers)


def has_states(cache: Cache) -> bool:
    """Whether some block keeps recurrent states: linear attention, state spaces, convolutions."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def _is_filled(layer: Any) -> bool:
    if isinstance(layer, CacheLayerMixin):
        return bool(layer.is_initialized and int(layer.get_seq_length()) > 0)
    return isinstance(layer, LinearAttentionCacheLayerMixin) and any(layer.has_previous_state.values())


def _is_allocated(layer: Any) -> bool:
    """Whether the layer has memory for a certain number of rows, filled or not."""
    names = ("is_initialized", "is_conv_states_initialized", "is_recurrent_states_initialized")
    return any(any(_flags(vars(layer).get(name, False))) for name in names)


def _flags(value: Any) -> Collection[bool]:
    """Keys and values have one flag, states one each."""
    return value.values() if isinstance(value, dict) else [value]


def _length(layer: Any) -> int:
    return int(layer.get_seq_length()) if isinstance(layer, CacheLayerMixin) else 1


def _emptied(layer: Any) -> Any:
    """A layer like this one, without tokens and without memory for any number of rows."""
    blank = copy.copy(layer)
    for name, value in vars(layer).items():
        if name.endswith("initialized") or name == "has_previous_state":
            setattr(blank, name, dict.fromkeys(value, False) if isinstance(value, dict) else False)
        elif name in ("conv_states", "recurrent_states"):
            setattr(blank, name, dict.fromkeys(value))
        elif name in ("keys", "values", "indexer_keys"):
            setattr(blank, name, None)
        elif isinstance(value, (Tensor, dict)):
            setattr(blank, name, copy.deepcopy(value))
    blank.reset()
    return blank


def _another(blank: Any) -> Any:
    """What `copy.deepcopy` makes of an empty layer, sooner: most hold nothing that needs copying."""
    layer = copy.copy(blank)
    memo: dict[int, Any] = {}
    for name, value in vars(blank).items():
        if value is not None and not isinstance(value, (bool, int, str)):
            setattr(layer, name, copy.deepcopy(value, memo))
    return layer


def _empty_ledger(blank: Any) -> Any:
    # One number a token makes no group to quantise; lengths are a dynamic layer's there.
    return DynamicLayer() if isinstance(blank, QuantizedLayer) else _another(blank)


def _note_tokens(ledger: Any, tokens: int) -> None:
    nothing = torch.zeros(1, 1, tokens, 1)
    if isinstance(ledger, CacheLayerMixin):
        ledger.update(nothing, nothing)
    if isinstance(ledger, LinearAttentionCacheLayerMixin):
        for state in ledger.conv_states:
            ledger.update_conv_state(nothing[..., 0], state_idx=state)
