"""`RoutedLayer`: one decoder block, run zero, one or two times for the rows that ask for it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache

from ..decisions import EXECUTE, SKIP
from ..errors import DrLLMError
from .batch_decisions import BlockDecisions, cut
from .cache import RoutedEntry, find_cache, routed_entry
from .config import DrLLMConfig
from .route import MIXED, Call, Route, RouterInputs
from .router import Router
from .straight_through import DepthPenalty, expected_passes, mix


class RoutedLayer(nn.Module, BaseTunerLayer):
    """Wraps a decoder block; the model's own forward loop calls it in the block's place.

    Args:
        base_layer: the block.
        index: its place in the stack, which is also its entry in the cache.
        route: shared by all blocks of the model.
        num_outputs: how many values the block returns; None when it is the hidden states alone.
    """

    adapter_layer_names = ("drllm_router",)
    other_param_names = ("drllm_config",)
    cast_input_dtype_enabled = True  # PEFT's helpers switch it; routers read float32 in any case

    def __init__(self, base_layer: nn.Module, index: int, route: Route, num_outputs: int | None = None) -> None:
        super().__init__()
        self._num_outputs = num_outputs
        self.base_layer = base_layer
        self.index = index
        self.route = route
        self.drllm_router = nn.ModuleDict()
        # On every block, with or without a router, so that all agree which adapters exist and which is active.
        self.drllm_config: dict[str, DrLLMConfig] = {}
        # The calling convention: the first parameter is the hidden states, whatever its name.
        self.hidden_argument = next(iter(inspect.signature(base_layer.forward).parameters))

    def update_layer(self, adapter_name: str, config: DrLLMConfig, hidden_size: int) -> None:
        """Add an adapter's router, when the adapter has one for this block."""
        if self.index in config.routed_blocks(self.route.num_blocks):
            # Weights that are about to be loaded take no memory before their file has been looked at.
            to_be_loaded = config.inference_mode and config.weights_follow
            with torch.device("meta") if to_be_loaded else nullcontext():
                router = Router(hidden_size, config.router_width)
            # PEFT's low_cpu_mem_usage creates modules on the meta device as well, and assigns the loaded weights.
            if router.up.weight.device.type != "meta":
                router.to(self._device())
            self.drllm_router[adapter_name] = router
        self.drllm_config[adapter_name] = config

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        # Routers that had to wait for their weights take memory now, unless they are handed the loaded tensors.
        if not local_metadata.get("assign_to_params_buffers", False):
            for name, router in self.drllm_router.items():
                given = f"{prefix}drllm_router.{name}.up.weight" in state_dict
                if given and next(router.parameters()).device.type == "meta":
                    router.to_empty(device=self._device())
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.route.unverified.pop(adapter_name, None)

    def adapters(self) -> tuple[Any, ...]:
        """Which adapters there are, which are active, and whether they are disabled: for `set_adapters`."""
        switches = {name: vars(self)[name] for name in ("_active_adapter", "_disable_adapters") if name in vars(self)}
        return dict(self.drllm_router), dict(self.drllm_config), switches

    def set_adapters(self, before: tuple[Any, ...]) -> None:
        """Go back to what `adapters` gave."""
        routers, configs, switches = before
        self.drllm_router = nn.ModuleDict(routers)
        self.drllm_config = dict(configs)
        for name in ("_active_adapter", "_disable_adapters"):
            vars(self).pop(name, None)
        vars(self).update(switches)

    def _replicate_for_data_parallel(self) -> Any:
        raise DrLLMError(
            "nn.DataParallel runs copies of a model in threads that would share one route, but the model carries "
            "routers; use one process for each GPU (torchrun or accelerate launch), or show one GPU by "
            "CUDA_VISIBLE_DEVICES=0."
        )

    def _device(self) -> torch.device:
        """Where the block computes. Of weights that are kept elsewhere meanwhile, accelerate's hooks know."""
        for module in self.base_layer.modules():
            hook = getattr(module, "_hf_hook", None)
            for single in getattr(hook, "hooks", (hook,)):
                device: Any = getattr(single, "execution_device", None)
                if device is not None:
                    return torch.device(device)
        parameter = next(self.base_layer.parameters(), None)
        known = parameter is not None and parameter.device.type != "meta"
        return parameter.device if known and parameter is not None else torch.device("cpu")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise DrLLMError(
            "a router adapter cannot be merged into the base model, because its decisions depend on the prompt; use "
            "unload() to get the base model back."
        )

    def unmerge(self) -> None:
        """Nothing to do: PEFT asks every adapter's layers, those of a LoRA inside the blocks too."""

    @property
    def active_config(self) -> DrLLMConfig | None:
        """The configuration of the router adapter in charge; None when none is active or adapters are disabled."""
        name = self.active_router_adapter
        return None if name is None else self.drllm_config[name]

    @property
    def active_router_adapter(self) -> str | None:
        if self.disable_adapters:
            return None
        names = [name for name in self.active_adapters if name in self.drllm_config]
        if len(names) > 1:
            raise DrLLMError(
                f"one router adapter can be active at a time, but {len(names)} are ({', '.join(names)}); "
                f"call set_adapter with one name."
            )
        return names[0] if names else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        route, call = self.route, self.route.call
        if torch.compiler.is_compiling():
            return self._run(call, args, kwargs)
        try:
            return self._run(call, args, kwargs)
        except BaseException:
            route.abandon(call)
            raise

    def _run(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Every token goes through here once a block, so what costs microseconds is kept out of it.
        self.route.check_thread()
        cache = find_cache(args, kwargs)
        if call.adapter is None:
            self._return_cache(cache)
            return self.base_layer(*args, **kwargs)
        hidden = args[0] if args else kwargs[self.hidden_argument]
        if call.hidden_states is not None:
            call.hidden_states.append(hidden)

        if call.at_prompt:
            name = call.adapter
            router: Any = self.drllm_router[name] if name in self.drllm_router else None  # noqa: SIM401 - a ModuleDict
            decisions, probabilities = self.route.decide(call, self.index, router, hidden)
            if self.training and torch.is_grad_enabled() and probabilities is not None:
                return self._run_all_outcomes(call, decisions, probabilities, hidden, cache, args, kwargs)
            if cache is not None and call.decisions is not None:
                routed_entry(cache, self.index).start(call.decisions, self.index)
        else:
            decisions = call.decided(self.index)

        if decisions.uniform is None:
            return self.as_output(self._run_some_rows(call, decisions, hidden, cache, args, kwargs))
        if decisions.uniform == SKIP:
            if cache is not None:
                routed_entry(cache, self.index).skip(hidden.shape[1])
            return self.as_output(hidden)
        # Auxiliary outputs are those of the last pass.
        output = self._run_pass(0, cache, args, kwargs)
        for number in range(1, decisions.uniform):
            output = self._run_pass(number, cache, *self._with_hidden(hidden_of(output), args, kwargs))
        return output

    def as_output(self, hidden: Tensor) -> Any:
        """The hidden states in the form that the forward loop expects; auxiliary outputs of no single pass are None."""
        return hidden if self._num_outputs is None else (hidden, *[None] * (self._num_outputs - 1))

    def _run_some_rows(
        self,
        call: Call,
        decisions: BlockDecisions,
        hidden: Tensor,
        cache: Cache | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        call.check_outputs(MIXED)
        batch_size = decisions.batch_size
        for number, rows in enumerate(decisions.passes):
            if len(rows) == batch_size:
                hidden = hidden_of(self._run_pass(number, cache, *self._with_hidden(hidden, args, kwargs)))
                continue
            device = hidden.device
            index = rows.on(device)
            some = hidden.index_select(0, index)
            others = tuple(cut(call.cuts, value, rows, device, batch_size) for value in args[1:])
            named = {
                name: some if name == self.hidden_argument else cut(call.cuts, value, rows, device, batch_size, name)
                for name, value in kwargs.items()
            }
            output = hidden_of(self._run_pass(number, cache, (some, *others) if args else (), named))
            hidden = _with_rows(hidden, index, output)
        return hidden

    def _run_all_outcomes(
        self,
        call: Call,
        decisions: BlockDecisions,
        probabilities: Tensor,
        hidden: Tensor,
        cache: Cache | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """In training: both passes for every row, so that the router has a gradient; see straight_through.py.

        Models make a cache in training as well, unless told not to; it stays empty and cannot be continued.
        """
        call.check_outputs("training mode runs every block twice; run the model in evaluation mode")
        if cache is not None:
            routed_entry(cache, self.index).only_trained = True
        args = tuple(None if isinstance(value, Cache) else value for value in args)
        kwargs = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
        once = hidden_of(self._run_pass(0, None, args, kwargs))
        twice = hidden_of(self._run_pass(1, None, *self._with_hidden(once, args, kwargs)))
        output = mix((hidden.to(once.device), once, twice), decisions.values, probabilities.to(once.device))
        config = call.config
        if config is not None and config.depth_penalty:
            penalty = config.depth_penalty * expected_passes(probabilities) / self.route.num_blocks
            output = DepthPenalty.apply(output, penalty)
        return self.as_output(output)

    def _with_hidden(
        self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The block's arguments with other hidden states."""
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, self.hidden_argument: hidden}

    def _run_pass(self, number: int, cache: Cache | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        block: Any = self._modules["base_layer"]  # nn.Module's own lookup takes microseconds
        if cache is None:
            return block(*args, **kwargs)
        layers: list[Any] = cache.layers
        entry = layers[self.index] if self.index < len(layers) else None
        if not isinstance(entry, RoutedEntry):  # the base model filled the cache, in which every block executed
            return block(*args, **kwargs)
        layer = entry.passes[number]
        # An offloaded cache fetches the next block's entry ahead of time, but not that of a block after a skipped one,
        # and puts a pass away while another pass of the block is still to come.
        if cache.offloading:
            layer.prefetch()
        layers[self.index] = layer
        try:
            return block(*args, **kwargs)
        finally:
            layers[self.index] = entry

    def _return_cache(self, cache: Cache | None) -> None:
        """A routed cache whose route is the base model's continues in the base model; others are refused there."""
        if cache is not None and self.index < len(cache.layers):
            entry = cache.layers[self.index]
            if isinstance(entry, RoutedEntry):
                if entry.decisions is None:
                    cache.layers[self.index] = entry.blank()
                elif entry.decisions.uniform == EXECUTE:
                    cache.layers[self.index] = entry.passes[0]

    def __getattr__(self, name: str) -> Any:
        # Forward loops read attributes of their blocks (attention type, layer type, ...).
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base_layer":
                raise
            return getattr(self.base_layer, name)


def _with_rows(hidden: Tensor, rows: Tensor, output: Tensor) -> Tensor:
    """`hidden` `[batch, tokens, width]` with `output` in its `rows`; the block may lie on another device or widen."""
    if hidden.device != output.device or hidden.dtype != output.dtype:
        dtype = torch.promote_types(hidden.dtype, output.dtype)
        hidden, output = hidden.to(output.device, dtype), output.to(dtype)
    # Autocast refuses states that are of another half precision than its own.
    with torch.autocast(output.device.type, enabled=False) if torch.is_autocast_enabled() else nullcontext():
        return hidden.index_copy(0, rows.to(output.device), output)


def hidden_of(output: Any) -> Tensor:
    """The hidden states, `[batch, tokens, width]`, among what a block returns."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def find_routed_layers(model: nn.Module) -> list[RoutedLayer]:
    """The routed blocks of a model, in order; none of a model without routers."""
    # By the class's own method: a model below routers answers as if it had none.
    return [module for _, module in nn.Module.named_modules(model) if isinstance(module, RoutedLayer)]


def routed_layers(model: nn.Module) -> list[RoutedLayer]:
    """The routed blocks of a model, in order.

    Raises:
        DrLLMError: the model carries no router adapter.
    """
    layers = find_routed_layers(model)
    if not layers:
        raise DrLLMError(
            f"the model must carry a router adapter, but this {type(model).__name__} has none; attach one with "
            f"get_peft_model(model, DrLLMConfig()) or load one."
        )
    return layers


@contextmanager
def observe_router_inputs(model: nn.Module, callback: RouterInputs) -> Iterator[None]:
    """Call `callback(block, means, used)` for every block of every prompt: what its router reads.

    `means` is `[batch, windows, width]` float32, `used` `[batch]`. Blocks without a router are shown as well.
    """
    route = routed_layers(model)[0].route
    previous, route.observer = route.observer, callback
    try:
        yield
    finally:
        route.observer = previous
