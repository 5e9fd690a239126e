"""Routers and another adapter, a LoRA say: it lies below them, inside the blocks, and is saved without them."""

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
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


def check_name(model: nn.Module, adapter_name: str) -> None:
    """Refuse the name of an adapter below that has modules_to_save: PEFT tells those by the adapter's name alone.

    Raises:
        DrLLMError: the names are the same.
    """
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in module._adapters:
            raise DrLLMError(
                f"routers over an adapter with modules_to_save must have a name of their own, but both are called "
                f"{adapter_name!r}; give another adapter_name, 'routers' for example."
            )


def transformers_model(model: nn.Module) -> nn.Module:
    """The model inside all of PEFT's wrappers."""
    return transformers_model(model.get_base_model()) if isinstance(model, PeftModel) else model


class SaveWithoutRouters:
    """Stands in for `save_pretrained` of a model that carries another adapter below the routers.

    PEFT names weights by the modules around them: with the routers in place, a saved LoRA would not load without them.
    """

    def __init__(self, model: Any, blocks: nn.ModuleList) -> None:
        self.model = model
        self.blocks = blocks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        save = type(self.model).save_pretrained
        routed = list(self.blocks)
        if not self._saves_another(routed):
            return save(self.model, *args, **kwargs)
        for index, layer in enumerate(routed):
            self.blocks[index] = layer.get_submodule("base_layer")
        try:
            return save(self.model, *args, **kwargs)
        finally:
            for index, layer in enumerate(routed):
                self.blocks[index] = layer

    def _saves_another(self, routed: list[Any]) -> bool:
        if not all(isinstance(layer, RoutedLayer) for layer in routed):
            return False
        # A PeftModel saves its own adapters, a transformers model the one that is active.
        return isinstance(self.model, PeftModel) or not set(routed[0].active_adapters) & set(routed[0].drllm_config)


def save_without_routers(model: nn.Module, blocks: nn.ModuleList) -> None:
    """Let a model whose blocks carry another adapter save it as if the routers were not there."""
    if any(isinstance(module, BaseTunerLayer) for module in blocks.modules()):
        model.save_pretrained = SaveWithoutRouters(model, blocks)  # type: ignore[assignment]
