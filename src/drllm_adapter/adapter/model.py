"""`DrLLMModel`: the PEFT tuner that puts routed layers in place of a model's decoder blocks."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..errors import DrLLMError
from .config import DrLLMConfig, check_layer_budget
from .hooks import attach, detach
from .integrity import checksum
from .layer import RoutedLayer, routed_layers
from .route import Route
from .stack import Stack, find_stack
from .stacking import RouterConfigs, check_name, save_without_routers, transformers_model


class DrLLMModel(BaseTuner):
    """Wraps every decoder block of a causal language model; only the routers are trainable.

    The base model's own forward loop runs, over the wrapped blocks. All state lives with the blocks, so the adapter
    works the same when transformers injects it and drops this object.
    """

    prefix = "drllm_"
    tuner_layer_cls = RoutedLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # type: ignore[misc]

    def __init__(self, model: Any, peft_config: Any, adapter_name: str, **kwargs: Any) -> None:
        below: Any = model.peft_config if isinstance(model, PeftModel) else None
        if below is not None and any(isinstance(config, DrLLMConfig) for config in below.values()):
            raise DrLLMError(
                "a PeftModel with routers must get further router adapters by add_adapter or load_adapter, but it was "
                "given as the base of a second PeftModel; call one of them on it and choose with set_adapter."
            )
        configs = {adapter_name: peft_config} if isinstance(peft_config, PeftConfig) else peft_config
        super().__init__(model, RouterConfigs(configs), adapter_name, **kwargs)
        if below is not None:
            model.peft_config = below  # BaseTuner has just put ours in its place

    def __getattr__(self, name: str) -> Any:
        # BaseTuner adds its configuration to one that the model has. A PeftModel below, a LoRA say, keeps its own.
        if name == "peft_config" and isinstance(self.model, PeftModel):
            raise AttributeError(name)
        return super().__getattr__(name)

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
        if peft_config.base_model_name_or_path is None:
            peft_config.base_model_name_or_path = transformers_model(self.model).__dict__.get("name_or_path") or None
        peft_config.target_modules = rf"{re.escape(stack.name)}\.\d+"
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        self._stack: Stack = find_stack(model)
        routed = [block for block in self._stack.blocks if isinstance(block, RoutedLayer)]
        self._route = routed[0].route if routed else Route(len(self._stack.blocks))
        if not routed:
            attach(transformers_model(model), self._stack, self._route)
            save_without_routers(model, self._stack.blocks)

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
        check_name(self.model, adapter_name)
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
        # The configuration was read from a file, so its weights are about to be: they are checked once, then.
        if peft_config.checksum is not None:
            self._route.unverified[adapter_name] = peft_config.checksum

    # PEFT walks over the adapters of every method and over modules_to_save; those of a model below are not ours.

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        for layer in routed_layers(self.model):
            layer.set_adapter(adapter_name, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for layer in routed_layers(self.model):
            layer.enable_adapters(enabled)

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
            self.merge_adapter()
        model: Any = self.model
        for index, layer in enumerate(routed_layers(model)):
            self._stack.blocks[index] = layer.base_layer
        detach(transformers_model(model))
        model.__dict__.pop("save_pretrained", None)
        if not isinstance(model, PeftModel):
            del model.peft_config
        return model

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        routed_layers(self.model)[0].merge()

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise DrLLMError(
            "router adapters cannot be combined by weights, because each takes whole decisions; train one adapter on "
            "all the questions, or choose one with set_adapter."
        )

    @classmethod
    def _get_adapter_state_dict(  # type: ignore[override]
        cls,
        model: nn.Module,
        config: DrLLMConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        weights = {key: value for key, value in state_dict.items() if f".drllm_router.{adapter_name}." in key}
        # PEFT saves the configuration right after the weights: the checksum is of what is being saved.
        config.checksum = checksum({_short_name(key, adapter_name): value for key, value in weights.items()})
        # Named as on the bare base, so that the adapter fits it with and without another adapter below.
        wrapped = "base_model.model."
        while weights and all(key.startswith(2 * wrapped) for key in weights):
            weights = {key.removeprefix(wrapped): value for key, value in weights.items()}
        return weights

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"drllm_router.{adapter_name}.", "drllm_router.")

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls, model: nn.Module, config: DrLLMConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        marker = f".drllm_router.{adapter_name}."
        expected = {key: value for key, value in model.state_dict().items() if marker in key}
        # By block and parameter: what comes before differs with the wrappers around the blocks.
        places = {_short_name(key, adapter_name): key for key in expected}
        remapped = {places.get(_short_name(key), key): value for key, value in state_dict.items()}
        _check_weights(config, expected, remapped)
        _check_checksum(routed_layers(model)[0].route, adapter_name, remapped)
        return remapped


def _short_name(key: str, adapter_name: str | None = None) -> str:
    """`"...layers.3.drllm_router.default.up.bias"` is `"3.up.bias"`; files leave out the name of the adapter."""
    marker = ".drllm_router." if adapter_name is None else f".drllm_router.{adapter_name}."
    block, _, parameter = key.partition(marker)
    return f"{block.rpartition('.')[2]}.{parameter}"


def _check_weights(config: DrLLMConfig, expected: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Refuse router weights that are missing, unknown, of another shape or not finite."""
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


def _check_checksum(route: Route, adapter_name: str, weights: dict[str, Tensor]) -> None:
    """Refuse weights that are not those that the adapter's configuration, read just before, was saved with."""
    checked = route.unverified.get(adapter_name)
    if checked is None:
        return
    found = checksum({_short_name(key, adapter_name): value for key, value in weights.items()})
    if found != checked:
        raise DrLLMError(
            f"the router weights must have checksum {checked[:12]}, as adapter_config.json says, but the weight file "
            f"has {found[:12]}; download or save the adapter again."
        )
    del route.unverified[adapter_name]
