"""Routers over another adapter, a LoRA say, that lies inside the blocks and is saved and loaded without them."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from torch import nn

from ..errors import DrLLMError
from .config import DrLLMConfig
from .integrity import check_complete
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
    """Stands in for a method of a model below the routers, which works as if they were not there.

    PEFT and transformers name weights by the modules around them. With the routers in place a saved LoRA would not load
    without them, one that is loaded would not find its modules, and a saved base would load with random blocks.

    Args:
        model: whose method it is: a PeftModel below, its tuner, a transformers model or its decoder.
        blocks: the list of blocks, routed or not.
        method: what it is called.
    """

    def __init__(self, model: Any, blocks: nn.ModuleList, method: str) -> None:
        self.model = model
        self.blocks = blocks
        self.method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = getattr(type(self.model), self.method)
        routed = list(self.blocks)
        if not all(isinstance(layer, RoutedLayer) for layer in routed) or self._concerns_routers(args, kwargs):
            if self.method == "save_pretrained" and isinstance(routed[0], RoutedLayer):
                check_complete(routed, routed[0].active_adapters)
            return call(self.model, *args, **kwargs)
        for index, layer in enumerate(routed):
            self.blocks[index] = layer.get_submodule("base_layer")
        try:
            self._check_saving()
            result = call(self.model, *args, **kwargs)
            return list(result) if isinstance(result, Iterator) else result
        finally:
            for index, layer in enumerate(routed):
                self.blocks[index] = layer

    def _concerns_routers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it is a part of a call of the model around, or about the routers themselves."""
        if self.method in ("state_dict", "named_modules"):
            return bool(args) or kwargs.get("destination") is not None or kwargs.get("memo") is not None
        if self.method == "load_state_dict":
            given = args[0] if args else kwargs.get("state_dict", ())
            return any(".drllm_router." in key for key in given)
        if self.method == "save_pretrained" and getattr(self.model, "_hf_peft_config_loaded", False):
            # transformers saves the adapter that is active.
            layer: Any = self.blocks[0]
            return bool(set(layer.active_adapters) & set(layer.drllm_config))
        return False

    def _check_saving(self) -> None:
        below = next((m for m in self.model.modules() if isinstance(m, BaseTunerLayer)), None)
        own = isinstance(self.model, PeftModel) or getattr(self.model, "_hf_peft_config_loaded", False)
        if self.method == "save_pretrained" and below is not None and not own:
            raise DrLLMError(
                f"a base must be saved without adapters inside its blocks, but this {type(self.model).__name__} has "
                f"{type(below).__name__}s in them, with which no call loads it again; save the adapter by its own "
                f"save_pretrained, or call unload() of the model with routers, then merge_and_unload() or unload() of "
                f"that adapter, and save what it returns."
            )


class RefusedBelow:
    """Stands in for what would take the blocks apart that the routers around them go on using."""

    def __init__(self, model: Any, method: str) -> None:
        self.model = model
        self.method = method

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise DrLLMError(
            "an adapter below routers cannot be unloaded or merged away before them, because their blocks contain it; "
            "call unload() of the model with routers first, then unload() or merge_and_unload() of what it returns "
            "(merge_adapter() works with the routers in place)."
        )


# Of a PeftModel below and of its tuner; of the base in it and of the base's decoder.
_BELOW = ("save_pretrained", "load_adapter", "state_dict", "load_state_dict", "named_modules")
_OF_TUNER = ("inject_adapter", "merge_adapter")
_OF_BASE = ("save_pretrained", "state_dict", "load_state_dict")


def stand_in(model: Any, blocks: nn.ModuleList, *, has_own: bool) -> None:
    """Let the calls of everything below the routers do what they do without routers.

    Args:
        model: what was given to be routed.
        blocks: its blocks.
        has_own: whether the routers are the model's own (`add_adapter`, `inject_adapter_in_model`) and not those of a
            PeftModel around it: then their weights are part of its state.
    """
    while isinstance(model, PeftModel):
        for method in _BELOW:
            setattr(model, method, WithoutRouters(model, blocks, method))
        if isinstance(model.base_model, BaseTuner):
            for method in _OF_TUNER:
                setattr(model.base_model, method, WithoutRouters(model.base_model, blocks, method))
            unload = "_unload_and_optionally_merge"  # what unload and merge_and_unload of every method come to
            setattr(model.base_model, unload, RefusedBelow(model.base_model, unload))
        model = model.get_base_model()
    for module in model.modules():
        if hasattr(type(module), "save_pretrained") and any(part is blocks for part in module.modules()):
            for method in ("save_pretrained",) if has_own else _OF_BASE:
                setattr(module, method, WithoutRouters(module, blocks, method))


def stop_standing_in(model: nn.Module) -> None:
    """Take away everything that `stand_in` has put into the model."""
    for _, module in list(nn.Module.named_modules(model)):
        for name, value in list(vars(module).items()):
            if isinstance(value, (WithoutRouters, RefusedBelow)):
                delattr(module, name)


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
