"""Routers over another adapter, a LoRA say, that lies inside the blocks and is saved and loaded without them."""

import warnings
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from torch import nn

from ..errors import DrLLMError
from .config import DrLLMConfig
from .layer import RoutedLayer


class RouterConfigs(dict[str, PeftConfig]):
    """The configurations of a model's router adapters by name.

    Another method's tuner would add its own here before it looks for modules to adapt. It would find none, because PEFT
    adapts nothing inside a module that is adapted already: here is the place to say so.
    """

    def __init__(self, configs: Mapping[str, PeftConfig]) -> None:
        super().__init__()
        self.update(configs)

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        if not isinstance(config, DrLLMConfig):
            raise DrLLMError(
                f"another adapter must lie below the routers, but the blocks were routed before this "
                f"{type(config).__name__} was given; save the routers, call unload(), attach the other adapter and "
                f"load the routers on top of it."
            )
        super().__setitem__(name, config)

    def update(self, configs: Mapping[str, PeftConfig]) -> None:  # type: ignore[override]
        for name, config in configs.items():
            self[name] = config


def check_below(model: nn.Module, adapter_name: str) -> None:
    """Refuse what cannot lie below routers.

    Raises:
        DrLLMError: an adapter below trains tokens, or has modules_to_save and the same name, by which alone PEFT tells
            those modules of different adapters; or its prefix fills the cache before the prompt.
    """
    if isinstance(model, PeftModel) and model.peft_type == PeftType.PREFIX_TUNING:
        raise DrLLMError(
            "routers need the prompt to be the first that a cache holds, but prefix tuning fills it before; use prompt "
            "tuning, p-tuning or a LoRA below the routers."
        )
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper):
            raise DrLLMError(
                "routers cannot be saved over an adapter with trainable_token_indices, because PEFT looks for tokens "
                "of every adapter there; merge that adapter into the base first, by merge_and_unload."
            )
        if isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in module._adapters:
            raise DrLLMError(
                f"routers over an adapter with modules_to_save must have a name of their own, but both are called "
                f"{adapter_name!r}; give another adapter_name, 'routers' for example."
            )


def transformers_model(model: nn.Module) -> nn.Module:
    """The model inside all of PEFT's wrappers."""
    return transformers_model(model.get_base_model()) if isinstance(model, PeftModel) else model


class WithoutRouters:
    """Stands in for a method of a model that carries another adapter below the routers, to save or to load that one.

    PEFT names weights by the modules around them: with the routers in place, a saved LoRA would not load without them,
    and one that is loaded would not find its modules.
    """

    def __init__(self, model: Any, blocks: nn.ModuleList, method: str) -> None:
        self.model = model
        self.blocks = blocks
        self.method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = getattr(type(self.model), self.method)
        routed = list(self.blocks)
        if not self._is_of_another(routed):
            return call(self.model, *args, **kwargs)
        for index, layer in enumerate(routed):
            self.blocks[index] = layer.get_submodule("base_layer")
        try:
            return call(self.model, *args, **kwargs)
        finally:
            for index, layer in enumerate(routed):
                self.blocks[index] = layer

    def _is_of_another(self, routed: list[Any]) -> bool:
        if not all(isinstance(layer, RoutedLayer) for layer in routed):
            return False
        # A PeftModel has its own adapters alone; a transformers model saves the one that is active.
        return isinstance(self.model, PeftModel) or not set(routed[0].active_adapters) & set(routed[0].drllm_config)


def set_aside_routers(model: Any, blocks: nn.ModuleList) -> None:
    """Let a model that carries another adapter below save and load it as if the routers were not there."""
    if isinstance(model, PeftModel):
        model.save_pretrained = WithoutRouters(model, blocks, "save_pretrained")  # type: ignore[method-assign]
        model.load_adapter = WithoutRouters(model, blocks, "load_adapter")  # type: ignore[method-assign]
    elif any(isinstance(module, BaseTunerLayer) for module in blocks.modules()):
        model.save_pretrained = WithoutRouters(model, blocks, "save_pretrained")


def warn_of_unsaved(model: PeftModel) -> None:
    """Warn when routers are saved while an adapter below them is being trained: their file is theirs alone."""
    below: Any = model.base_model.model
    method: Any = getattr(below, "peft_type", None)
    if isinstance(below, PeftModel) and any(
        parameter.requires_grad and ".drllm_router." not in name for name, parameter in below.named_parameters()
    ):
        warnings.warn(
            f"the routers are saved without the {method.value} adapter below them, which is being trained as well; "
            f"save it with its own save_pretrained, from a callback where Trainer saves checkpoints.",
            stacklevel=4,
        )
