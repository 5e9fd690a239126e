"""What happens around the base model's own forward: telling prompt from continuation, and prompt from padding.

Blocks see neither padding masks nor labels, so two forward pre-hooks pick them up where they pass by: one at the model
(labels, candidates of assisted generation), one at the decoder stack (everything else). A third hook, after the stack,
puts the hidden states in order. Hooks are objects that hold the route, so that copies of the model get a route of their
own.
"""

import inspect
from collections.abc import Mapping
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.utils.generic import ModelOutput

from ..errors import DrLLMError
from .cache import find_cache, has_tokens
from .integrity import verify_once
from .route import NextCall, Route
from .stack import Stack

PACKING_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Where the sequences of a packed row begin: flash attention's and the state-space kernels' names for it."""

OUTPUTS_OF_EACH_PASS = ("output_attentions", "output_router_logits")
"""Options whose outputs transformers records inside the blocks, each time one runs."""


class _ModelHook:
    """At the model: which tokens are not the prompt is said by arguments that blocks never see."""

    def __init__(self, route: Route) -> None:
        self.route = route

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self.route.next_call
        call.labels = kwargs.get("labels")
        # Assisted generation sends the first candidates along with the prompt and asks for one logit more than those.
        kept = kwargs.get("logits_to_keep")
        call.candidate_tokens = kept - 1 if call.in_generate and isinstance(kept, int) and kept else 0


class _StackHook:
    """At the decoder stack: begins the route of each forward call."""

    def __init__(self, route: Route, owner: nn.Module) -> None:
        self.route = route
        self.parameters = list(inspect.signature(owner.forward).parameters)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        route = self.route
        if not torch.compiler.is_compiling():
            route.thread = get_ident()
        call, route.next_call = route.next_call, NextCall()
        # Once for all blocks: what PEFT's properties look up is the same for each of them.
        route.active_adapter = route.layers[0].active_router_adapter
        route.hidden_states = route.executes = None
        if route.active_adapter is None:
            return
        given = {**dict(zip(self.parameters, args, strict=False)), **kwargs} if args else kwargs
        config = getattr(module, "config", None)
        if _option(given, config, "output_hidden_states"):
            route.hidden_states = []
        route.output_of_each_pass = next((o for o in OUTPUTS_OF_EACH_PASS if _option(given, config, o)), None)
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given.get("inputs_embeds")
        if tokens is None:
            return  # the model itself says what is missing
        batch_size, length = tokens.shape[:2]
        cache = find_cache(args, kwargs)
        if call.continues_without_cache or (cache is not None and has_tokens(cache)):
            route.continue_prompt(batch_size, cache, in_generate=call.in_generate)
            return
        verify_once(route)
        if route.forced is None:
            _refuse_packed(given)
        mask = given.get("attention_mask") if call.generation_mask is None else call.generation_mask
        prompt = _real_tokens(mask, batch_size, length, tokens.device)
        if call.labels is not None and call.labels.shape == prompt.shape:
            prompt = _before_answer(prompt, call.labels)
        if call.candidate_tokens:
            prompt = prompt & (torch.arange(length, device=prompt.device) < length - call.candidate_tokens)
        route.begin_prompt(prompt, in_generate=call.in_generate)


class _OutputHook:
    """After the decoder stack: hidden states are those between the blocks, not one for each time a block has run."""

    def __init__(self, route: Route) -> None:
        self.route = route

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        entering, self.route.hidden_states = self.route.hidden_states, None
        if entering and isinstance(output, ModelOutput) and "hidden_states" in output:
            output["hidden_states"] = (*entering, output["last_hidden_state"])


def _option(given: Mapping[str, Any], config: Any, name: str) -> Any:
    """An output option of a call, which the configuration may set for all calls."""
    value = given.get(name)
    return getattr(config, name, False) if value is None else value


def _refuse_packed(given: Mapping[str, Any]) -> None:
    """A row has one route, so a row that holds several sequences cannot be routed by what they say."""
    packed = [name for name in PACKING_ARGUMENTS if given.get(name) is not None]
    positions = given.get("position_ids")
    unmasked = isinstance(positions, Tensor) and positions.ndim == 2 and given.get("attention_mask") is None
    if not packed and unmasked and _starts_again(positions):
        packed = ["position_ids that start again"]
    if packed:
        raise DrLLMError(
            f"a row must hold one sequence, because the routers decide once per row, but {packed[0]} say that several "
            f"are packed into one; pad them into rows of their own, or force decisions."
        )


def _starts_again(positions: Any) -> bool:
    return bool((positions[:, 1:] <= positions[:, :-1]).any())


def _real_tokens(mask: Any, batch_size: int, length: int, device: torch.device) -> Tensor:
    """`[batch, length]` bool, false at padding."""
    if mask is None:
        return torch.ones(batch_size, length, dtype=torch.bool, device=device)
    if isinstance(mask, dict):
        mask = next((value for value in mask.values() if value is not None), None)
        return _real_tokens(mask, batch_size, length, device)
    if not isinstance(mask, Tensor):
        raise DrLLMError(
            f"attention_mask must be a tensor, so that padding can be told from the prompt, but a "
            f"{type(mask).__name__} was given; pass [batch, tokens] and let the model build its mask."
        )
    if mask.ndim == 2:
        return mask[:, -length:].to(device).bool()
    if mask.ndim == 4 and mask.shape[-2] == length:
        # A token that may not attend to itself is padding.
        diagonal = mask[:, 0].diagonal(dim1=-2, dim2=-1).to(device)
        return (diagonal if diagonal.dtype == torch.bool else diagonal == 0).expand(batch_size, -1)
    raise DrLLMError(
        f"attention_mask must be [batch, tokens] or [batch, 1, tokens, keys], so that padding can be told from the "
        f"prompt, but its shape is {list(mask.shape)} for {length} tokens; pass one of these."
    )


def _before_answer(prompt: Tensor, labels: Tensor) -> Tensor:
    """Keep the tokens before the first one that is scored; all of them where the answer begins at once."""
    answer_begun = ((labels.to(prompt.device) != -100) & prompt).cumsum(dim=1) > 0
    before = prompt & ~answer_begun
    return torch.where(before.any(dim=1, keepdim=True), before, prompt)


class GenerationInputs:
    """Stands in for the model's `prepare_inputs_for_generation`, which `generate` calls before every forward.

    Without it nothing tells a forward call inside `generate` without a cache, which repeats the prompt with generated
    tokens behind it, from a new prompt; and with a static cache the padding mask arrives in the decoder only as a 4-d
    mask. docs/design.md lists everything of transformers and PEFT that is replaced.
    """

    def __init__(self, model: Any, route: Route) -> None:
        self.model = model
        self.route = route
        # The id of the cache whose first tokens may be the first chunk of a chunked prompt.
        self._chunked: int | None = None

    def __call__(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        method = type(self.model).prepare_inputs_for_generation
        inputs: dict[str, Any] = method(self.model, input_ids, *args, **kwargs)
        mask = kwargs.get("attention_mask")
        call = self.route.next_call
        call.generation_mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        call.in_generate = True
        first = kwargs.get("is_first_iteration", False)
        cache = find_cache((), inputs)
        call.continues_without_cache = cache is None and not first
        # Decoding and whole prompts say how many of the tokens are new; chunks of a prompt come cut.
        is_chunk = "next_sequence_length" not in kwargs and (first or input_ids.shape[1] > 1)
        self._refuse_chunks(cache, is_chunk=is_chunk)
        return inputs

    def _refuse_chunks(self, cache: Cache | None, *, is_chunk: bool) -> None:
        """The routers would read the first chunk alone."""
        if not is_chunk or cache is None or self.route.forced is not None:
            self._chunked = None
        elif not has_tokens(cache):
            self._chunked = id(cache)
        elif self._chunked == id(cache) and self.route.layers[0].active_router_adapter is not None:
            self._chunked = None
            raise DrLLMError(
                "the routers must read the whole prompt at once, but prefill_chunk_size cuts it into chunks; leave it "
                "out, set it to at least the length of the prompt, or force decisions."
            )


def attach(model: nn.Module, stack: Stack, route: Route) -> None:
    """Hook the route to the model."""
    model.register_forward_pre_hook(_ModelHook(route), with_kwargs=True)
    stack.owner.register_forward_pre_hook(_StackHook(route, stack.owner), with_kwargs=True)
    # Models that collect hidden states in their own forward loop have them right.
    if "hidden_states" in (getattr(stack.owner, "_can_record_outputs", None) or {}):
        stack.owner.register_forward_hook(_OutputHook(route))
    if hasattr(type(model), "prepare_inputs_for_generation"):
        model.prepare_inputs_for_generation = GenerationInputs(model, route)  # type: ignore[assignment]


def detach(model: nn.Module) -> None:
    """Take away everything that `attach` added."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, (_ModelHook, _StackHook)):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key, after in list(module._forward_hooks.items()):
            if isinstance(after, _OutputHook):
                del module._forward_hooks[key]
    model.__dict__.pop("prepare_inputs_for_generation", None)
