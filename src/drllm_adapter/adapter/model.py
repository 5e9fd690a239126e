"""`DrLLMModel`: the PEFT tuner that puts routed layers in place of a model's decoder blocks."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from peft import PeftConfig, PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..errors import DrLLMError
from . import base_identity
from .attaching import remove_routers, unchanged_on_error
from .card_on_push import CardOnPush
from .checked_loading import CheckedLoading
from .config import DrLLMConfig, check_layer_budget
from .hooks import attach
from .integrity import check_weights, checksum, router_weights
from .layer import RoutedLayer, find_routed_layers, routed_layers
from .other_adapters import RouterConfigs, check_below, stand_in, transformers_model
from .route import Route
from .stack import Stack, find_stack
from .weight_file import short_name

_WIDEST_ON_ANY_BASE = 4096


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
        # So do add_adapter and inject_adapter_in_model; a PeftModel gives a dict.
        injected = isinstance(peft_config, PeftConfig)
        configs = {adapter_name: peft_config} if injected else peft_config
        if not injected:
            _check_task(model, configs[adapter_name])
        first = not find_routed_layers(model)
        with unchanged_on_error(model):
            super().__init__(model, RouterConfigs(configs), adapter_name, **kwargs)
        if below is not None:
            model.peft_config = below  # BaseTuner has just put ours in its place
        if first:
            stand_in(model, self._stack.blocks, has_own=injected)

    def __getattr__(self, name: str) -> Any:
        # BaseTuner adds its configuration to one that the model has. A PeftModel below, a LoRA say, keeps its own.
        if name == "peft_config" and isinstance(self.model, PeftModel):
            raise AttributeError(name)
        return super().__getattr__(name)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        *args: Any,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As PEFT's; prepares for the loading of the weights, which PEFT or transformers begins next.

        Every block is wrapped, so `state_dict` says only which ones have a router, as `layers_to_transform` does.
        """
        check_below(self.model, adapter_name)
        config: Any = self.peft_config[adapter_name]
        if state_dict is not None:
            _take_blocks_from(state_dict, config, len(find_stack(self.model).blocks))
        with unchanged_on_error(self.model):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        inner = transformers_model(self.model)
        CheckedLoading.remove(inner)
        if config.weights_follow:
            config.weights_follow = False
            self._route.unverified[adapter_name] = config.checksum
        CheckedLoading(inner, self._route, adapter_name, config).attach()

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: DrLLMConfig, model_config: dict[str, Any]
    ) -> DrLLMConfig:
        stack = find_stack(self.model)
        _check_offloading(self.model)
        fits = {
            "base_model_type": stack.model_type,
            "num_blocks": len(stack.blocks),
            "hidden_size": stack.hidden_size,
            "base_config": base_identity.config_hash(transformers_model(self.model)),
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
        # transformers makes routers that are to be trained further before it looks for their file.
        widest = max(_WIDEST_ON_ANY_BASE, 4 * stack.hidden_size)
        if peft_config.router_width > widest:
            raise DrLLMError(
                f"router_width must be at most {widest:,} on a base of width {stack.hidden_size:,}, but it is "
                f"{peft_config.router_width:,}: routers would be larger than the blocks; choose a smaller one."
            )
        self._compare_base(peft_config)
        peft_config.check()
        num_routed = len(peft_config.routed_blocks(len(stack.blocks)))
        check_layer_budget(peft_config.layer_budget, len(stack.blocks), num_routed)
        if peft_config.base_model_name_or_path is None:
            peft_config.base_model_name_or_path = transformers_model(self.model).__dict__.get("name_or_path") or None
        peft_config.target_modules = rf"{re.escape(stack.name)}\.\d+"
        return peft_config

    def _compare_base(self, peft_config: DrLLMConfig) -> None:
        """Warn, once, of a base that fits but is not the one that the routers were trained on; remember a new one's."""
        model = transformers_model(self.model)
        found = {
            "base_revision": base_identity.revision(model),
            "base_weights": base_identity.comparable_fingerprint(model),
        }
        differing = [
            f"{name} {expected[:12]} there, {value[:12]} here"
            for name, value in found.items()
            if (expected := getattr(peft_config, name)) is not None and value is not None and expected != value
            if name != "base_weights" or not base_identity.is_fingerprint_of(expected, model)
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
            attach(transformers_model(model), self._stack, self._route)

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
            layer.training = target.training
            setattr(parent, target_name, layer)
        layer.update_layer(adapter_name, peft_config, self._stack.hidden_size)
        if adapter_name not in self.active_adapters and adapter_name in layer.drllm_router:
            layer.drllm_router[adapter_name].requires_grad_(False)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)

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
        remove_routers(model)
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
        if any(value.device.type == "meta" for value in weights.values()):
            config.checksum = None
        else:
            # PEFT saves the configuration right after the weights: the checksum is of what is being saved.
            config.checksum = checksum({short_name(key, adapter_name): value for key, value in weights.items()})
        CardOnPush(model).attach()
        # Named as on the bare base, so that the adapter fits it with and without another adapter below.
        wrapped = "base_model.model."
        while weights and all(key.startswith(2 * wrapped) for key in weights):
            weights = {key.removeprefix(wrapped): value for key, value in weights.items()}
        return _RouterWeights(weights)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"drllm_router.{adapter_name}.", "drllm_router.")

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls, model: nn.Module, config: DrLLMConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        layers = routed_layers(model)
        CheckedLoading.remove(transformers_model(model))
        marker = f".drllm_router.{adapter_name}."
        # By block and parameter: what comes before differs with the wrappers around the blocks.
        places = {short_name(key, adapter_name): key for key, _ in model.named_parameters() if marker in key}
        weights = {short_name(key): value for key, value in state_dict.items()}
        route = layers[0].route
        shapes = {name: value.shape for name, value in router_weights(layers, adapter_name).items()}
        check_weights(weights, shapes, route.unverified.get(adapter_name))
        route.unverified.pop(adapter_name, None)
        return {places[name]: value.float() for name, value in weights.items()}


class _RouterWeights(dict[str, Tensor]):
    """What is saved of an adapter. PEFT would add the embeddings, by `update`, where the vocabulary was resized."""

    def update(self, *embeddings: Any, **kwargs: Any) -> None:
        warnings.warn(
            "embeddings are not saved with a router adapter, which leaves its base as it is; save the base with the "
            "resized or trained embeddings by get_base_model().save_pretrained(...), which leaves the routers out, and "
            "load the adapter on that.",
            stacklevel=4,
        )


def _check_task(model: nn.Module, config: Any) -> None:
    """Refuse what PEFT would find out after the blocks have been wrapped."""
    if config.task_type == TaskType.CAUSAL_LM and not hasattr(model, "prepare_inputs_for_generation"):
        raise DrLLMError(
            f"a router adapter of task_type CAUSAL_LM needs a model that generates text, but this "
            f"{type(model).__name__} has no language-model head; give DrLLMConfig(task_type='FEATURE_EXTRACTION'), or "
            f"set task_type of a saved adapter's configuration to it and pass that as config."
        )


def _take_blocks_from(state_dict: dict[str, Tensor], config: DrLLMConfig, num_blocks: int) -> None:
    """PEFT's rule: where the weights are given with the configuration, they say which modules are adapted."""
    blocks = {int(name.split(".")[0]) for name in map(short_name, state_dict) if name.split(".")[0].isdigit()}
    if blocks and blocks != set(config.routed_blocks(num_blocks)):
        warnings.warn(
            f"the weights are of routers for the blocks {sorted(blocks)}, but layers_to_transform says "
            f"{config.routed_blocks(num_blocks)}: the weights' blocks get routers.",
            stacklevel=4,
        )
        config.layers_to_transform = sorted(blocks)


def _check_offloading(model: nn.Module) -> None:
    """Refuse blocks on the disk that `PeftModel.from_pretrained` has just cut off from it.

    It takes accelerate's hooks away and puts them back under names that it only finds for adapters of linear layers.
    """
    places = getattr(model, "hf_device_map", None) or {}
    if "disk" in places.values() and not any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise DrLLMError(
            "a base with weights on the disk must get its routers by get_peft_model, but PeftModel.from_pretrained was "
            "called; load the base again, then get_peft_model(base, PeftConfig.from_pretrained(adapter)) and "
            "set_peft_model_state_dict(model, load_peft_weights(adapter)), or offload after loading the adapter."
        )
