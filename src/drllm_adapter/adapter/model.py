"""`DrLLMModel`: the PEFT tuner that puts routed layers in place of a model's decoder blocks."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..errors import DrLLMError
from .config import DrLLMConfig, check_layer_budget
from .hooks import attach, detach
from .integrity import checksum
from .layer import RoutedLayer
from .route import Route
from .stack import Stack, find_stack


class DrLLMModel(BaseTuner):
    """Wraps every decoder block of a causal language model; only the routers are trainable.

    The base model's own forward loop runs, over the wrapped blocks. All state lives with the blocks, so the adapter
    works the same when transformers injects it and drops this object.
    """

    prefix = "drllm_"
    tuner_layer_cls = RoutedLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # type: ignore[misc]

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: DrLLMConfig, model_config: dict[str, Any]
    ) -> DrLLMConfig:
        stack = find_stack(self.model)
        fits = {
            "base_model_type": stack.model_type,
            "num_blocks": len(stack.blocks),
            "hidden_size": stack.hidden_size,
        }
        for name, found in fits.items():
            expected = getattr(peft_config, name)
            if expected is not None and expected != found:
                raise DrLLMError(
                    f"the adapter fits a {peft_config.base_model_type} base with {peft_config.num_blocks} blocks of "
                    f"width {peft_config.hidden_size}, but this base is {stack.model_type} with {len(stack.blocks)} "
                    f"blocks of width {stack.hidden_size}; load the base that the adapter was made for."
                )
        for name, found in fits.items():
            setattr(peft_config, name, found)
        peft_config._check_layers_to_transform()
        num_routed = len(peft_config.routed_blocks(len(stack.blocks)))
        check_layer_budget(peft_config.layer_budget, len(stack.blocks), num_routed)
        peft_config.target_modules = rf"{re.escape(stack.name)}\.\d+"
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        self._stack: Stack = find_stack(model)
        routed = [block for block in self._stack.blocks if isinstance(block, RoutedLayer)]
        self._route = routed[0].route if routed else Route(len(self._stack.blocks))
        if not routed:
            attach(model, self._stack, self._route)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: DrLLMConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if not isinstance(layer, RoutedLayer):
            layer = RoutedLayer(target, int(target_name), self._route, self._stack.num_outputs)
        if layer is not target:
            self._route.layers.append(layer)
            setattr(parent, target_name, layer)
        layer.update_layer(adapter_name, peft_config, self._stack.hidden_size)
        if adapter_name not in self.active_adapters and adapter_name in layer.drllm_router:
            layer.drllm_router[adapter_name].requires_grad_(False)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)
        # An adapter that is made for inference is about to be loaded: check on first use what was loaded.
        if peft_config.inference_mode and peft_config.checksum is not None:
            self._route.unverified[adapter_name] = peft_config.checksum

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.pop("adapter_names", None) is not None:
            raise DrLLMError(
                "rows of a batch cannot use different router adapters, but adapter_names was given; call set_adapter "
                "and run one batch for each adapter."
            )
        yield

    def _unload_and_optionally_merge(  # type: ignore[override]
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        if merge:
            raise DrLLMError(
                "a router adapter cannot be merged into the base model, because its decisions depend on the prompt; "
                "use unload() to get the base model back."
            )
        model: Any = super()._unload_and_optionally_merge(False, *args, **kwargs)
        detach(model)
        return model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"drllm_router.{adapter_name}.", "drllm_router.")

    @classmethod
    def _get_adapter_state_dict(  # type: ignore[override]
        cls,
        model: nn.Module,
        config: DrLLMConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        # PEFT saves the configuration right after the weights: the checksum is of what is being saved.
        config.checksum = checksum({_short_name(key, adapter_name): value for key, value in weights.items()})
        return weights

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls, model: nn.Module, config: DrLLMConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        _check_weights(model, config, adapter_name, remapped)
        return remapped


def _short_name(key: str, adapter_name: str) -> str:
    """`"...layers.3.drllm_router.default.up.bias"` is `"3.up.bias"`."""
    block, _, parameter = key.partition(f".drllm_router.{adapter_name}.")
    return f"{block.rpartition('.')[2]}.{parameter}"


def _check_weights(model: nn.Module, config: DrLLMConfig, adapter_name: str, weights: dict[str, Tensor]) -> None:
    """Refuse router weights that are missing, unknown, of another shape, not finite or not those that were saved."""
    marker = f".drllm_router.{adapter_name}."
    expected = {key: value for key, value in model.state_dict().items() if marker in key}
    problem = None
    if missing := sorted(expected.keys() - weights.keys()):
        problem = f"{len(missing)} of {len(expected)} are missing, the first being {missing[0]}"
    elif unknown := sorted(weights.keys() - expected.keys()):
        problem = f"{unknown[0]} belongs to no router"
    else:
        for key, value in weights.items():
            if value.shape != expected[key].shape:
                problem = f"{key} has shape {list(value.shape)} instead of {list(expected[key].shape)}"
            elif not value.is_floating_point() or not torch.isfinite(value).all():
                problem = f"{key} holds values that are not finite numbers"
    if problem is not None:
        raise DrLLMError(
            f"the weight file of the adapter must hold exactly the weights of its {config.num_blocks}-block routers, "
            f"but {problem}; download or save the adapter again."
        )
    if config.checksum is not None:
        found = checksum({_short_name(key, adapter_name): value for key, value in weights.items()})
        if found != config.checksum:
            raise DrLLMError(
                f"the router weights must have checksum {config.checksum[:12]}, as adapter_config.json says, but the "
                f"weight file has {found[:12]}; download or save the adapter again."
            )
