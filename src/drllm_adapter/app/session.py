"""A routed model that several people ask at once: answers that grow token by token, and what they took."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..adapter.cache import RoutedEntry
from ..adapter.calling import cache_keyword, last_position
from ..adapter.layer import observe_router_inputs, routed_layers
from ..adapter.policy import blend
from ..adapter.router import window_shares
from ..adapter.steering import force_decisions, last_decisions, set_depth_control, set_layer_budget
from ..decisions import Decisions, execute_all
from ..errors import DrLLMError
from ..evaluation.sweep import priced
from ..workflow.generate import Conversation, prompt_inputs

Probabilities = tuple[float, float, float]
"""Of skip, execute and repeat."""


@dataclass(frozen=True)
class Ask:
    """A prompt and how it is answered.

    Attributes:
        wording: see `prompt_inputs`.
        depth_control: the paper's p; None is the adapter's own.
        layer_budget: most block passes; None is no bound.
        price: of a block pass, see `priced`.
        forced: decisions by block, in place of what the routers choose for the prompt at these blocks.
    """

    prompt: str | Conversation
    wording: str | None = None
    max_new_tokens: int = 64
    depth_control: float | None = None
    layer_budget: int | None = None
    price: float = 0.0
    forced: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Path:
    """What was decided for a prompt.

    Attributes:
        decisions: as run.
        chosen: as the routers chose; the same but for forced blocks.
        probabilities: of each block's router after depth control; None at a block without one.
    """

    decisions: Decisions
    chosen: Decisions
    probabilities: tuple[Probabilities | None, ...]


@dataclass(frozen=True)
class Answer:
    """An answer so far.

    Attributes:
        path: None for the base model.
        tokens: generated, an end token included.
        prefill: seconds from the prompt to the first token.
        decode: seconds of the other tokens, waiting for others not included.
        cache_bytes: what keys, values and states take now.
        ended: by an end token or the longest length.
    """

    text: str
    path: Path | None
    prompt_tokens: int
    tokens: int
    prefill: float
    decode: float
    cache_bytes: int
    ended: bool

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens behind the first one; None without such."""
        return (self.tokens - 1) / self.decode if self.tokens > 1 else None


class Session:
    """One model for everybody who has the page open.

    The blocks share the route of the running call, so a lock is held around each call of the model, and what steers it
    is set inside. Between its tokens an answer holds nothing but its own cache: others are served in turn, and one that
    nobody reads on costs nothing.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.layers = routed_layers(model)
        self.num_blocks = len(self.layers)
        config = self._config
        self.depth_control, self.layer_budget = config.depth_control, config.layer_budget
        self.least_budget = self.num_blocks - len(config.routed_blocks(self.num_blocks))
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends = set(ends) if isinstance(ends, list) else {ends}
        self._lock = Lock()

    @property
    def _config(self) -> Any:
        return self.layers[0].active_config

    def path(self, ask: Ask) -> Path:
        """What would be decided for a prompt.

        Raises:
            DrLLMError: see `prompt_inputs`, `set_depth_control`, `set_layer_budget` and `force_decisions`.
        """
        ids = prompt_inputs(self.model, self.tokenizer, ask.prompt, wording=ask.wording)["input_ids"]
        with self._lock, torch.inference_mode(), self._steered(ask):
            return self._begin(ids, ask)[0]

    def answer(self, ask: Ask, *, routed: bool = True) -> Iterator[Answer]:
        """The greedy answer after every token; closing the iterator stops it.

        Raises:
            DrLLMError: as `path`.
        """
        inputs = prompt_inputs(
            self.model, self.tokenizer, ask.prompt, wording=ask.wording, max_new_tokens=ask.max_new_tokens
        )
        ids = inputs["input_ids"]
        with self._lock, torch.inference_mode(), self._steered(ask) if routed else self.model.disable_adapter():
            path, token, cache, seconds = self._begin(ids, ask) if routed else (None, *self._call(ids))
        tokens = [token]
        found = Answer(
            self._text(tokens), path, ids.shape[1], 1, seconds, 0.0, cache_bytes(cache), self._last(tokens, ask)
        )
        yield found
        while not found.ended:
            with self._lock, torch.inference_mode(), nullcontext() if routed else self.model.disable_adapter():
                token, cache, seconds = self._call(ids.new_tensor([[token]]), cache)
            tokens.append(token)
            found = replace(
                found,
                text=self._text(tokens),
                tokens=len(tokens),
                decode=found.decode + seconds,
                cache_bytes=cache_bytes(cache),
                ended=self._last(tokens, ask),
            )
            yield found

    def side_by_side(self, ask: Ask) -> Iterator[tuple[Answer, Answer]]:
        """Routed and base in turn, a token each, until both have ended."""
        answers = zip_longest(self.answer(ask), self.answer(ask, routed=False))
        routed, base = next(answers)
        yield routed, base
        for more_routed, more_base in answers:
            routed, base = more_routed or routed, more_base or base
            yield routed, base

    def _begin(self, ids: Tensor, ask: Ask) -> tuple[Path, int, Any, float]:
        """The routed prompt: path, first token, cache, seconds."""
        read: list[tuple[int, Tensor, Tensor]] = []
        with observe_router_inputs(self.model, lambda *inputs: read.append(inputs)):
            token, cache, seconds = self._call(ids)
        chosen = tuple(last_decisions(self.model)[0].tolist())
        decisions = tuple(ask.forced.get(block, decision) for block, decision in enumerate(chosen))
        if decisions != chosen:
            with force_decisions(self.model, decisions):
                token, cache, seconds = self._call(ids)
        return Path(decisions, chosen, tuple(self._probabilities(*inputs) for inputs in read)), token, cache, seconds

    def _call(self, ids: Tensor, cache: Any = None) -> tuple[int, Any, float]:
        """The likeliest token behind `ids` `[1, tokens]`, the cache, and the seconds it took."""
        if cache is None:
            cache = DynamicCache(config=self.model.config.get_text_config())
        cached = {cache_keyword(self.model): cache}
        began = time.perf_counter()
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=last_position(), **cached)
        token = int(output.logits[0, -1].argmax())
        return token, cache, time.perf_counter() - began

    def _probabilities(self, block: int, means: Tensor, used: Tensor) -> Probabilities | None:
        layer, config = self.layers[block], self._config
        name = layer.active_router_adapter
        if name is None or name not in layer.drllm_router:
            return None
        logits = layer.drllm_router[name](means, window_shares(used, config.num_windows))
        skip, execute, repeat = blend(logits.softmax(dim=-1), config.depth_control)[0].tolist()
        return skip, execute, repeat

    @contextmanager
    def _steered(self, ask: Ask) -> Iterator[None]:
        wrong = [block for block in ask.forced if not 0 <= block < self.num_blocks]
        if wrong:
            raise DrLLMError(
                f"forced blocks must be 0 to {self.num_blocks - 1}, but {wrong[0]} was given; choose another block."
            )
        config = self._config
        before = config.depth_control, config.layer_budget
        try:
            if ask.depth_control is not None:
                set_depth_control(self.model, ask.depth_control)
            set_layer_budget(self.model, ask.layer_budget)
            with priced(self.model, ask.price):
                yield
        finally:
            config.depth_control, config.layer_budget = before

    def _last(self, tokens: list[int], ask: Ask) -> bool:
        return tokens[-1] in self._ends or len(tokens) >= ask.max_new_tokens

    def _text(self, tokens: list[int]) -> str:
        # Half a character, of which the other bytes are still to come, is not shown.
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text.removesuffix("\ufffd")


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys, values and states that a cache holds, those of every pass of a block."""
    entries = [
        entry for layer in cache.layers for entry in (layer.passes if isinstance(layer, RoutedEntry) else [layer])
    ]
    tensors = [value for entry in entries for value in vars(entry).values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def base_path(num_blocks: int) -> Path:
    """The base model's, to be drawn before anything was asked."""
    return Path(execute_all(num_blocks), execute_all(num_blocks), (None,) * num_blocks)
