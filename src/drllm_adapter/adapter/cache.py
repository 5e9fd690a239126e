"""Where each pass of each block keeps its keys and values, row by row.

A transformers `Cache` is a list of layers, one per block. Routing replaces each by a `RoutedEntry`, which holds one
ordinary cache layer per pass (none for a skipped block), with only the rows that make the pass. While a pass runs, its
layer takes the entry's place in the list, so that attention reads and writes it as it always does. Everything
transformers does to a cache between the blocks - reorder for beams, crop, select, repeat, reset, offload - reaches the
entries, so rows and routes stay together, and the caller's own cache object stays the one that is filled.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
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
from .rows import RowDecisions

# For blocks that keep nothing; transformers has had it since 5.23.
DummyLayer: Any = getattr(cache_utils, "DummyLayer", type("DummyLayer", (), {}))


class RoutedEntry:
    """The cache entry of one block: one ordinary cache layer for each pass that some row makes.

    Its subclasses add the base class by which transformers tells keys and values from recurrent states.
    """

    supports_early_init = False

    def __init__(self, layer: Any, batch_size: int) -> None:
        # The mixins' own __init__ would set attributes that are answered by the passes here.
        filled = _is_filled(layer)
        self._blank = _emptied(layer) if filled or _is_allocated(layer) else layer
        self.decisions: RowDecisions | None = None
        self.passes: list[Any] = []
        # Keeps the length of a block that every row skips: a layer of the same class with one number per token, so
        # that lengths, mask sizes and cropping follow that class's own rules (sliding windows included).
        self._ledger: Any = None
        self._not_in_ledger = 0
        # Training mode ran the block with all three outcomes, of which no cache entry is kept.
        self.only_trained = False
        self.is_sliding = bool(getattr(layer, "is_sliding", False))
        # Also says that the layer is longer than its tokens, so that masks must never be left out.
        self.is_compileable = layer.is_compileable
        if filled:
            # A cache that the base model filled is one in which every block executed.
            self.decisions = RowDecisions((EXECUTE,) * batch_size)
            self.passes = [layer]

    def __repr__(self) -> str:
        made = None if self.decisions is None else self.decisions.decisions
        return f"{type(self).__name__}(decisions={made}, passes={self.passes})"

    def blank(self) -> Any:
        """The plain cache layer that this entry stands in for, empty."""
        return self._blank

    def start(self, decisions: RowDecisions) -> None:
        """Begin a sequence: one empty entry for each pass that some row makes."""
        self.decisions = decisions
        self.passes = [_another(self._blank) for _ in range(decisions.max_passes)]
        self._ledger = None if self.passes else _empty_ledger(self._blank)
        self._not_in_ledger = 0

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
        return getattr(self._current, name)

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
        for layer in self._all():
            layer.crop(tokens_to_remove)

    def reset(self) -> None:
        self.decisions, self.passes, self._ledger, self._not_in_ledger = None, [], None, 0
        self.only_trained = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take(beam_idx.cpu())

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.decisions is not None:
            self._take(torch.arange(self.decisions.batch_size)[indices.cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.decisions is not None:
            self._take(torch.arange(self.decisions.batch_size).repeat_interleave(repeats))

    def _take(self, rows: Tensor) -> None:
        """Make row `rows[i]` of the batch its row i, in every pass."""
        if self.decisions is None:
            return
        before, after = self.decisions, self.decisions.take(rows)
        for number, layer in enumerate(self.passes):
            place = {row: index for index, row in enumerate(before.rows(number).tolist())}
            kept = [place[row] for row in rows.tolist() if row in place]
            if kept:
                layer.reorder_cache(torch.tensor(kept, dtype=torch.long))
        # Rows that leave the batch may have been the only ones to make a pass.
        if not after.max_passes and self.passes:
            self._ledger = _empty_ledger(self._blank)
            _note_tokens(self._ledger, _length(self.passes[0]))
        del self.passes[after.max_passes :]
        self.decisions = after


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
        return self.passes[0].keys if self.passes else None

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        return self.passes[0].values if self.passes else None


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


def routed_entry(cache: Cache, block: int, batch_size: int) -> RoutedEntry:
    """The routed entry of `block` in `cache`, put in place of the plain one on first use.

    Raises:
        DrLLMError: the cache's layers cannot hold several passes, or it holds another number of rows.
    """
    layers: list[Any] = cache.layers
    while len(layers) <= block:
        if cache.layer_class_to_replicate is None:
            raise DrLLMError(
                f"the cache must have a layer for every block, but it has {len(layers)} and block {block} asks for "
                f"one; make the cache with the model's own config."
            )
        layers.append(cache.layer_class_to_replicate())
    entry = layers[block]
    if not isinstance(entry, RoutedEntry):
        entry = _entry_class(entry)(entry, batch_size)
        layers[block] = entry
    if entry.decisions is not None and entry.decisions.batch_size != batch_size:
        raise DrLLMError(
            f"the cache holds {entry.decisions.batch_size} rows, but {batch_size} rows of tokens were given; "
            f"repeat or select the cache's rows to match."
        )
    routed: RoutedEntry = entry
    return routed


def routes_of(cache: Cache) -> list[RowDecisions | None]:
    """The decisions that each block's entry was filled along; None where no route has filled it."""
    return [entry.decisions if isinstance(entry, RoutedEntry) else None for entry in cache.layers]


def check_route(
    routes: Sequence[RowDecisions | None], forced: tuple[int, ...] | Sequence[Sequence[int]], batch_size: int
) -> None:
    """Refuse forced decisions that differ from the route a cache was filled along, before any block writes to it.

    Args:
        routes: see `routes_of`; without one, the base model filled the cache and every block executed.
        forced: `[blocks]` for all rows, a tuple, or `[batch][blocks]`.

    Raises:
        DrLLMError: naming the first block that differs.
    """
    executed = RowDecisions((EXECUTE,) * batch_size)
    for block, decisions in enumerate(routes):
        taken = executed if decisions is None else decisions
        if isinstance(forced, tuple):
            wanted, agrees = [forced[block]], taken.uniform == forced[block]
        else:
            wanted = [row[block] for row in forced]
            agrees = list(taken.decisions) == wanted
        if not agrees:
            raise DrLLMError(
                f"forced decisions must agree with the route that the cache was filled along, but block {block} has "
                f"{list(taken.decisions)} in the cache and {wanted} was forced; begin with a new cache."
            )


def check_base_route(cache: Cache) -> None:
    """Refuse to go on in the base model with a cache in which not every block executed.

    Raises:
        DrLLMError: some row skipped or repeated a block.
    """
    if any(decisions is not None and decisions.uniform != EXECUTE for decisions in routes_of(cache)):
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
    return any(_is_filled(layer) for layer in cache.layers)


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
