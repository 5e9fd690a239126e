"""The decoder blocks of a model, called one by one with the arguments that the model's own forward loop gives them."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

from ...adapter.batch_decisions import select_rows
from ...adapter.cache import has_states
from ...adapter.calling import last_position
from ...adapter.layer import RoutedLayer, hidden_of, routed_layers


@dataclass(frozen=True)
class Prepared:
    """What enters the first block for some rows, and what every block is called with beside its hidden states.

    Attributes:
        hidden: `[rows, tokens, width]`.
        calls: for each block its other positional and its keyword arguments, for all rows.
    """

    hidden: Tensor
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


class Blocks:
    """Runs single blocks outside the forward loop, for any architecture that calls its blocks one after another.

    The model's own forward runs twice, never copied: once over blocks that only note their arguments (masks, rotary
    embeddings, ...), and at the end over blocks that hand the finished hidden states on to the norm and the head.

    Args:
        model: a causal language model with a router adapter; its routers are not used.
    """

    def __init__(self, model: Any) -> None:
        self.model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.layers = routed_layers(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def follows_the_row(self) -> bool:
        """Whether blocks take the tokens of a row for one sequence whatever the mask says: states, and ALiBi."""
        config: Any = self.model.config.get_text_config(decoder=True)
        if has_states(DynamicCache(config=config)):
            return True
        arguments = inspect.signature(self.layers[0].base_layer.forward).parameters
        return "position_bias" in arguments or ("alibi" in arguments and getattr(config, "alibi", True))

    @property
    def window(self) -> float:
        """How many tokens some block looks back at most, by the configuration's usual names; infinity for all."""
        config: Any = self.model.config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and not any("sliding" in kind or "chunked" in kind for kind in kinds):
            return math.inf
        if kinds is None and not getattr(config, "use_sliding_window", True):
            return math.inf
        sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
        return min((size for size in sizes if isinstance(size, int)), default=math.inf)

    def prepare(self, input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None) -> Prepared:
        """Everything of the forward pass that comes before the blocks.

        Args:
            input_ids: `[rows, tokens]`.
            mask: `[rows, 1, tokens, tokens]` bool, which tokens see which; None for ordinary causal sequences.
            position_ids: `[rows, tokens]`; None counts.
        """
        given: dict[str, Any] = {}
        if mask is not None:
            hidden_from = torch.zeros(mask.shape, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
            given["attention_mask"] = hidden_from.to(self.model.device)
        if position_ids is not None:
            given["position_ids"] = position_ids.to(self.model.device)
        seen: list[Tensor] = []
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            kwargs = dict(kwargs)
            hidden: Tensor = args[0] if args else kwargs.pop(self.layers[index].hidden_argument)
            seen.append(hidden)
            calls.append((args[1:], kwargs))
            return hidden

        with self._standing_in(note):
            ids = input_ids.to(self.model.device)
            self.model(input_ids=ids, use_cache=False, logits_to_keep=last_position(), **given)
        return Prepared(seen[0], tuple(calls))

    def run(self, block: int, hidden: Tensor, prepared: Prepared, rows: Sequence[int]) -> Tensor:
        """One pass of a block: `hidden` `[n, tokens, width]` are the states of `rows` of what was prepared."""
        args, kwargs = prepared.calls[block]
        count = prepared.hidden.shape[0]
        index = torch.tensor(rows, device=hidden.device)  # once for all arguments
        args, kwargs = select_rows(args, index, count), select_rows(kwargs, index, count)
        layer: Any = self.layers[block].base_layer
        return hidden_of(layer(hidden, *args, **kwargs))

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """`[n, vocabulary]` float32, of the token after those whose states `[n, width]` have left the last block."""
        # One token a row: no length limit, no masks between them.
        finished = hidden[:, None]
        ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=self.model.device)
        with self._standing_in(lambda index, args, kwargs: finished):
            output: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return output[:, 0].log_softmax(dim=-1, dtype=torch.float32)

    @contextmanager
    def _standing_in(self, function: Callable[[int, tuple[Any, ...], dict[str, Any]], Tensor]) -> Iterator[None]:
        """Let `function(block, args, kwargs)` give the hidden states that leave each block."""

        def stand_in(index: int, layer: RoutedLayer) -> Callable[..., Any]:
            return lambda *args, **kwargs: layer.as_output(function(index, args, kwargs))

        # On the instance, where accelerate's hooks are as well when a model is spread over devices.
        before = [layer.__dict__.get("forward") for layer in self.layers]
        try:
            for index, layer in enumerate(self.layers):
                layer.__dict__["forward"] = stand_in(index, layer)
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                del layer.__dict__["forward"]
                if forward is not None:
                    layer.__dict__["forward"] = forward
