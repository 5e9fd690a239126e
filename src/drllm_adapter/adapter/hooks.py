"""What happens around the base model's own forward: telling prompt from continuation, and prompt from padding.

Blocks see neither padding masks nor labels, so two forward pre-hooks pick them up where they pass by: one at the model
(labels, candidates of assisted generation), one at the decoder stack (everything else). A third hook, after the stack,
puts the hidden states in order. Hooks are objects that hold the route, so that copies of the model get a route of their
own.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.generation.candidate_generator import EarlyExitCandidateGenerator
from transformers.utils.generic import ModelOutput

from ..errors import DrLLMError
from .cache import check_base_route, check_kept, find_cache, has_tokens, route_of
from .integrity import verify_once
from .route import Call, NextCall, Route
from .stack import Stack

PACKING_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Where the sequences of a packed row begin: flash attention's and the state-space kernels' names for it."""

OUTPUTS_OF_EACH_PASS = ("output_attentions", "output_router_logits")
"""Options whose outputs transformers records inside the blocks, each time one runs."""


class _ModelHook:
    """At the model: which tokens are not the prompt is said by arguments that blocks never see."""

    def __init__(self, route: Route, model: nn.Module) -> None:
        self.route = route
        self.parameters = list(inspect.signature(model.forward).parameters)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _by_name(self.parameters, args, kwargs)
        tokens = _tokens(given)
        # What generate prepared is for this call alone, whether or not the call gets as far as the decoder stack.
        call = self.route.next_call if self.route.next_call.is_for(tokens) else NextCall()
        call.tokens, call.labels = tokens, given.get("labels")
        # Assisted generation sends the first candidates along with the prompt, and changes the number of logits that
        # was prepared to one more than those.
        kept = given.get("logits_to_keep")
        if call.in_generate and isinstance(kept, int) and kept and kept != call.logits_to_keep:
            call.candidate_tokens = kept - 1
        self.route.next_call = call


class _StackHook:
    """At the decoder stack: begins the route of each forward call."""

    def __init__(self, route: Route, stack: Stack) -> None:
        self.route = route
        self.blocks = stack.blocks
        self.parameters = list(inspect.signature(stack.owner.forward).parameters)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        route = self.route
        next_call, route.next_call = route.next_call, NextCall()
        # Once for all blocks: what PEFT's properties look up is the same for each of them.
        layer: Any = self.blocks[0]
        name = layer.active_router_adapter
        compiling = torch.compiler.is_compiling()
        call = Call(adapter=name, may_run_again=torch.is_grad_enabled() and not compiling)
        route.begin(call)
        try:
            self._begin(module, call, next_call, _by_name(self.parameters, args, kwargs), find_cache(args, kwargs))
        except BaseException:
            route.abandon(call)
            raise

    def _begin(
        self, module: nn.Module, call: Call, next_call: NextCall, given: Mapping[str, Any], cache: Cache | None
    ) -> None:
        route = self.route
        if call.adapter is None:
            if cache is not None:
                check_base_route(cache)
            return
        layer: Any = self.blocks[0]
        call.config = layer.drllm_config[call.adapter]
        config = getattr(module, "config", None)
        # transformers drafts with an early exit by a smaller number in the configuration.
        call.num_blocks = min(route.num_blocks, getattr(config, "num_hidden_layers", route.num_blocks))
        if _option(given, config, "output_hidden_states"):
            call.hidden_states = []
        call.output_of_each_pass = next((o for o in OUTPUTS_OF_EACH_PASS if _option(given, config, o)), None)
        tokens = _tokens(given)
        if tokens is None:
            return  # the model itself says what is missing
        if not next_call.is_for(tokens):
            next_call = NextCall()
        batch_size, length = tokens.shape[:2]
        continued = cache is not None and has_tokens(cache)
        if continued or (next_call.longer_prompt and route.continues(tokens)):
            route.continue_prompt(
                batch_size,
                route_of(cache, call.num_blocks, batch_size) if cache is not None and continued else None,
                in_generate=next_call.in_generate,
            )
            return
        if next_call.longer_prompt and next_call.in_loop_of_generate:
            raise DrLLMError(
                "generation without a cache keeps the route of its prompt from call to call, but the model was called "
                "with something else in between (guidance, a logits processor, ...); use a cache."
            )
        verify_once(route, self.blocks)
        if cache is not None:
            check_kept(cache)
        _refuse_paged(given)
        if route.forced is None:
            _refuse_packed(given)
        mask = given.get("attention_mask") if next_call.generation_mask is None else next_call.generation_mask
        prompt = _real_tokens(mask, batch_size, length, tokens.device)
        if next_call.labels is not None and next_call.labels.shape == prompt.shape:
            prompt = _before_answer(prompt, next_call.labels)
        known = length - next_call.candidate_tokens
        if next_call.candidate_tokens:
            prompt = prompt & (torch.arange(length, device=prompt.device) < known)
        route.begin_prompt(prompt, tokens[:, :known], in_generate=next_call.in_generate, has_cache=cache is not None)


class _OutputHook:
    """After the decoder stack, also when it has failed: ends the call, and puts its hidden states in order.

    They are those between the blocks, not one for each time a block has run.
    """

    def __init__(self, route: Route, *, in_order: bool) -> None:
        self.route = route
        self.in_order = in_order

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        entering = self.route.call.hidden_states
        if output is None:
            self.route.abandon(self.route.call)
            return None
        self.route.end()
        if not entering or self.in_order:
            return None
        if isinstance(output, ModelOutput):
            if "hidden_states" in output:
                output["hidden_states"] = (*entering, output["last_hidden_state"])
            return None
        # With return_dict=False they are the first tuple of states, the last ones standing before it.
        last = output[0]
        place = next((i for i, item in enumerate(output) if _are_states(item, last)), None)
        return None if place is None else (*output[:place], (*entering, last), *output[place + 1 :])


def _are_states(item: Any, last: Tensor) -> bool:
    return isinstance(item, tuple) and bool(item) and isinstance(item[0], Tensor) and item[0].shape == last.shape


def _tokens(given: Mapping[str, Any]) -> Any:
    """`[batch, tokens]` ids or `[batch, tokens, width]` embeddings among the arguments of a call."""
    ids = given.get("input_ids")
    return given.get("inputs_embeds") if ids is None else ids


def _option(given: Mapping[str, Any], config: Any, name: str) -> Any:
    """An output option of a call, which the configuration may set for all calls."""
    value = given.get(name)
    return getattr(config, name, False) if value is None else value


def _by_name(parameters: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(parameters, args, strict=False)), **kwargs} if args else kwargs


def _refuse_paged(given: Mapping[str, Any]) -> None:
    """Continuous batching packs requests into one row and keeps them in a cache of pages, not of blocks' layers."""
    cache = given.get("cache")
    if cache is not None and not isinstance(cache, Cache):
        raise DrLLMError(
            f"routed execution needs a transformers Cache made of layers, but a {type(cache).__name__} was given, as "
            f"continuous batching (generate_batch) does; call generate on a padded batch."
        )


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
        # A longer one is for tokens that are still to come, as the base model reads it.
        return mask[:, :length].to(device).bool()
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

    def __init__(self, model: Any, route: Route, blocks: nn.ModuleList) -> None:
        self.model = model
        self.route = route
        self.blocks = blocks
        # generate looks here for the kinds of inputs that the model takes.
        self.__signature__ = inspect.signature(type(model).prepare_inputs_for_generation.__get__(model))
        # The id of the cache whose first tokens may be the first chunk of a chunked prompt.
        self._chunked: int | None = None

    def __call__(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        method = type(self.model).prepare_inputs_for_generation
        inputs: dict[str, Any] = method(self.model, input_ids, *args, **kwargs)
        mask = kwargs.get("attention_mask")
        first = kwargs.get("is_first_iteration", False)
        cache = find_cache((), inputs)
        self.route.next_call = NextCall(
            tokens=_tokens(inputs),
            generation_mask=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            logits_to_keep=inputs.get("logits_to_keep"),
            in_generate=True,
            in_loop_of_generate="next_sequence_length" in kwargs,
            longer_prompt=cache is None and not first,
        )
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
        elif self._chunked == id(cache) and self.blocks[0].active_router_adapter is not None:
            self._chunked = None
            raise DrLLMError(
                "the routers must read the whole prompt at once, but prefill_chunk_size cuts it into chunks; leave it "
                "out, set it to at least the length of the prompt, or force decisions."
            )


class CandidateGenerators:
    """Stands in for the model's `_get_candidate_generator`, which `generate` calls once when it drafts.

    With `assistant_early_exit` transformers makes the configuration's number of blocks smaller while a draft is
    generated, and puts it back only when nothing was raised.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        generator = type(self.model)._get_candidate_generator(self.model, *args, **kwargs)
        if isinstance(generator, EarlyExitCandidateGenerator):
            config: Any = getattr(self.model, self.model.base_model_prefix).config
            get_candidates = generator.get_candidates

            def get_and_put_back(*given: Any, **named: Any) -> Any:
                num_blocks = config.num_hidden_layers
                try:
                    return get_candidates(*given, **named)
                finally:
                    config.num_hidden_layers = num_blocks

            generator.get_candidates = get_and_put_back  # type: ignore[method-assign]
        return generator


class ContinuousBatching:
    """Stands in for the model's `init_continuous_batching`, which `generate_batch` and `transformers serve` begin with.

    They run the model in a thread of their own, where a refusal would be logged and answers would be missing.
    """

    def __init__(self, model: Any, blocks: nn.ModuleList) -> None:
        self.model = model
        self.blocks = blocks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self.blocks[0]
        if layer.active_router_adapter is not None:
            raise DrLLMError(
                "continuous batching (generate_batch, transformers serve) has one page table for all requests and cuts "
                "prompts into pieces, but routes are of one request and its whole prompt; use generate, or drllm serve."
            )
        return type(self.model).init_continuous_batching(self.model, *args, **kwargs)


def attach(model: nn.Module, stack: Stack, route: Route) -> None:
    """Hook the route to the model."""
    model.register_forward_pre_hook(_ModelHook(route, model), with_kwargs=True)
    stack.owner.register_forward_pre_hook(_StackHook(route, stack), with_kwargs=True)
    # Models that collect hidden states in their own forward loop have them right.
    in_order = "hidden_states" not in (getattr(stack.owner, "_can_record_outputs", None) or {})
    stack.owner.register_forward_hook(_OutputHook(route, in_order=in_order), always_call=True)
    if hasattr(type(model), "prepare_inputs_for_generation"):
        model.prepare_inputs_for_generation = GenerationInputs(model, route, stack.blocks)  # type: ignore[assignment]
    if hasattr(type(model), "_get_candidate_generator"):
        model._get_candidate_generator = CandidateGenerators(model)  # type: ignore[assignment]
    if hasattr(type(model), "init_continuous_batching"):
        model.init_continuous_batching = ContinuousBatching(model, stack.blocks)  # type: ignore[assignment]


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
                module._forward_hooks_always_called.pop(key, None)
    for name in ("prepare_inputs_for_generation", "_get_candidate_generator", "init_continuous_batching"):
        model.__dict__.pop(name, None)
