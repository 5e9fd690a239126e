"""What happens around the base model's own forward: telling prompt from continuation, and prompt from padding.

Blocks see neither padding masks nor labels, so two forward pre-hooks pick them up where they pass by: one at the model
(labels), one at the decoder stack (everything else). Hooks are objects that hold the route, so that copies of the model
get a route of their own.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DrLLMError
from .cache import find_cache, has_tokens
from .integrity import verify_once
from .route import Route
from .stack import Stack


class _LabelsHook:
    """At the model: labels say which tokens are the answer, and blocks never see them."""

    def __init__(self, route: Route) -> None:
        self.route = route

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.route.labels = kwargs.get("labels")


class _StackHook:
    """At the decoder stack: begins the route of each forward call."""

    def __init__(self, route: Route, owner: nn.Module) -> None:
        self.route = route
        self.parameters = list(inspect.signature(owner.forward).parameters)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        route = self.route
        labels, route.labels = route.labels, None
        generation_mask, route.generation_mask = route.generation_mask, None
        continues, route.continues_without_cache = route.continues_without_cache, False
        in_generate, route.in_generate = route.in_generate, False
        # Once for all blocks: what PEFT's properties look up is the same for each of them.
        route.active_adapter = route.layers[0].active_router_adapter
        if route.active_adapter is None:
            return
        given = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        tokens = given.get("input_ids")
        if tokens is None:
            tokens = given.get("inputs_embeds")
        if tokens is None:
            return  # the model itself says what is missing
        batch_size, length = tokens.shape[:2]
        cache = find_cache(args, kwargs)
        if continues or (cache is not None and has_tokens(cache)):
            route.continue_prompt(batch_size, in_generate=in_generate)
            return
        verify_once(route)
        mask = generation_mask if generation_mask is not None else given.get("attention_mask")
        prompt = _real_tokens(mask, batch_size, length, tokens.device)
        if labels is not None and labels.shape == prompt.shape:
            prompt = _before_answer(prompt, labels)
        route.begin_prompt(prompt, in_generate=in_generate)


def _real_tokens(mask: Any, batch_size: int, length: int, device: torch.device) -> Tensor:
    """`[batch, length]` bool, false at padding."""
    if mask is None:
        return torch.ones(batch_size, length, dtype=torch.bool, device=device)
    if isinstance(mask, dict):
        mask = next((value for value in mask.values() if value is not None), None)
        return _real_tokens(mask, batch_size, length, device)
    if mask.ndim == 2:
        return mask[:, -length:].to(device).bool()
    if mask.ndim == 4:
        # A token that may not attend to itself is padding.
        diagonal = mask[:, 0].diagonal(dim1=-2, dim2=-1)[:, :length].to(device)
        return (diagonal if diagonal.dtype == torch.bool else diagonal == 0).expand(batch_size, -1)
    raise DrLLMError(
        f"attention_mask must be [batch, tokens] or [batch, 1, query, key], but its shape is {list(mask.shape)}; "
        f"pass one of these."
    )


def _before_answer(prompt: Tensor, labels: Tensor) -> Tensor:
    """Keep the tokens before the first one that is scored; all of them where the answer begins at once."""
    answer_begun = ((labels.to(prompt.device) != -100) & prompt).cumsum(dim=1) > 0
    before = prompt & ~answer_begun
    return torch.where(before.any(dim=1, keepdim=True), before, prompt)


class GenerationInputs:
    """Stands in for the model's `prepare_inputs_for_generation`, which `generate` calls before every forward.

    This is the one place where something of transformers is replaced. Without it nothing tells a forward call inside
    `generate` without a cache, which repeats the prompt with generated tokens behind it, from a new prompt; and with a
    static cache the padding mask arrives in the decoder only as a 4-d mask.
    """

    def __init__(self, model: Any, route: Route) -> None:
        self.model = model
        self.route = route

    def __call__(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        method = type(self.model).prepare_inputs_for_generation
        inputs: dict[str, Any] = method(self.model, input_ids, *args, **kwargs)
        mask = kwargs.get("attention_mask")
        self.route.generation_mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self.route.in_generate = True
        first = kwargs.get("is_first_iteration", False)
        self.route.continues_without_cache = find_cache((), inputs) is None and not first
        return inputs


def attach(model: nn.Module, stack: Stack, route: Route) -> None:
    """Hook the route to the model."""
    model.register_forward_pre_hook(_LabelsHook(route), with_kwargs=True)
    stack.owner.register_forward_pre_hook(_StackHook(route, stack.owner), with_kwargs=True)
    if hasattr(type(model), "prepare_inputs_for_generation"):
        model.prepare_inputs_for_generation = GenerationInputs(model, route)  # type: ignore[assignment]


def detach(model: nn.Module) -> None:
    """Take away everything that `attach` added."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, (_LabelsHook, _StackHook)):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    model.__dict__.pop("prepare_inputs_for_generation", None)
