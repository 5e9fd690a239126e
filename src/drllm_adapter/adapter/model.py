"""`DrLLMModel`: the PEFT tuner that puts routed layers in place of a model's decoder blocks."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..errors import DrLLMError
from . import base
from .architectures import TUPLE_OUTPUTS
from .card_on_push import CardOnPush
from .checked_loading import CheckedLoading
from .config import DrLLMConfig, check_layer_budget
from .hooks import attach, detach
from .integrity import check_weights, checksum, short_name
from .layer import RoutedLayer, routed_layers
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
            "base_config": base.config_hash(self.model),
        }
        for name, found in fits.items():
            expected = getattr(peft_config, name)
            if expected is not None and expected != found:
                raise DrLLMError(
                    f"the adapter fits a {peft_config.base_model_type} base with {peft_config.num_blocks} blocks of "
                    f"width {peft_config.hidden_size} (configuration {peft_config.base_config}), but this base is "
                    f"{stack.model_type} with {len(stack.blocks)} blocks of width {stack.hidden_size} (configuration "
                    f"{fits['base_config']}); load the base that the adapter was made for."
                )
        for name, found in fits.items():
            setattr(peft_config, name, found)
        self._compare_base(peft_config)
        peft_config._check_layers_to_transform()
        num_routed = len(peft_config.routed_blocks(len(stack.blocks)))
        check_layer_budget(peft_config.layer_budget, len(stack.blocks), num_routed)
        peft_config.target_modules = rf"{re.escape(stack.name)}\.\d+"
        return peft_config

    def _compare_base(self, peft_config: DrLLMConfig) -> None:
        """Warn, once, of a base that fits but is not the one that the routers were trained on; remember a new one's."""
        found = {
            "base_revision": base.revision(self.model),
            "base_weights": base.comparable_fingerprint(self.model),
        }
        differing = [
            f"{name} {expected[:12]} there, {value[:12]} here"
            for name, value in found.items()
            if (expected := getattr(peft_config, name)) is not None and value is not None and expected != value
        ]
        if differing:
            warnings.warn(
                f"the adapter was made for another state of its base model "
                f"{peft_config.base_model_name_or_path} ({'; '.join(differing)}): it fits, but was not measured on it.",
                stacklevel=2,
            )
            return
        for name, value in found.items():
            if getattr(peft_config, name) is None:
                setattr(peft_config, name, value)

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
            num_outputs = TUPLE_OUTPUTS.get(self._stack.model_type)
            layer = RoutedLayer(target, int(target_name), self._route, num_outputs)
        if layer is not target:
            self._route.layers.append(layer)
            setattr(parent, target_name, layer)
        layer.update_layer(adapter_name, peft_config, self._stack.hidden_size)
        if adapter_name not in self.active_adapters and adapter_name in layer.drllm_router:
            layer.drllm_router[adapter_name].requires_grad_(False)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)
        # Settings that were read from a saved adapter: its weights are about to be loaded, by PEFT or by transformers.
        if peft_config.checksum is not None and adapter_name not in self._route.unverified:
            self._route.unverified[adapter_name] = peft_config.checksum
            if hasattr(type(self.model), "_load_pretrained_model"):
                CheckedLoading(self.model, self._route, adapter_name, peft_config).attach()

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
        CardOnPush(model).attach()
        # PEFT saves the configuration right after the weights: the checksum is of what is being saved.
        config.checksum = checksum({short_name(key, adapter_name): value for key, value in weights.items()})
        return weights

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls, model: nn.Module, config: DrLLMConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        for module in model.modules():
            CheckedLoading.remove(module)
        layers = routed_layers(model)
        expected = {
            f"{layer.index}.{name}": parameter.shape
            for layer in layers
            if adapter_name in layer.drllm_router
            for name, parameter in layer.drllm_router[adapter_name].named_parameters()
        }
        weights = {short_name(key, adapter_name): value for key, value in remapped.items()}
        check_weights(weights, expected, layers[0].route.unverified.pop(adapter_name, None))
        for layer in layers:
            layer.materialize(adapter_name)
        return remapped
