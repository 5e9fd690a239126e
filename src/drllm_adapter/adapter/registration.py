"""Make `DRLLM` a PEFT method, through PEFT's own `register_peft_method`."""

from collections.abc import Callable
from typing import Any

import wrapt
from peft import PeftModel, PeftType
from peft.utils import register_peft_method
from torch import nn

from ..errors import DrLLMError
from .config import NAME


def _add_peft_type() -> None:
    # register_peft_method only accepts members of PeftType, and Python enums have no call that adds one.
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    type.__setattr__(PeftType, NAME, member)


def register() -> None:
    """Register the method once; later calls do nothing."""
    if NAME in PeftType.__members__:
        return
    _add_peft_type()
    from .config import DrLLMConfig
    from .model import DrLLMModel

    register_peft_method(name=NAME.lower(), config_cls=DrLLMConfig, model_cls=DrLLMModel)
    wrapt.wrap_function_wrapper(PeftModel, "save_pretrained", _check_saving)
    for method in ("from_pretrained", "load_adapter"):
        wrapt.wrap_function_wrapper(PeftModel, method, load_whole)


def _check_saving(save: Callable[..., None], model: PeftModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # PEFT asks a method for its weights, but does not say which kind of file they are for, nor what lies below.
    from .integrity import check_complete
    from .layer import routed_layers
    from .other_adapters import warn_of_unsaved  # needs the method to be registered

    if model.peft_type == NAME:
        if not (args[1] if len(args) > 1 else kwargs.get("safe_serialization", True)):
            raise DrLLMError(
                "the weights of a router adapter must be saved as safetensors, but safe_serialization=False was given; "
                "leave it out."
            )
        names = (args[2] if len(args) > 2 else kwargs.get("selected_adapters")) or list(model.peft_config)
        check_complete(routed_layers(model), names)
        warn_of_unsaved(model)
    save(*args, **kwargs)


def load_whole(load: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Around PEFT's and transformers' loading of adapters, which attach first and read the weights then.

    A load that fails would leave a model with routers that have no weights, or damaged ones.
    """
    from .attaching import unchanged_on_error

    model = instance
    if isinstance(instance, type):  # PeftModel.from_pretrained
        model = args[0] if args else kwargs.get("model")
    if not isinstance(model, nn.Module):
        return load(*args, **kwargs)  # which says what is wrong
    with unchanged_on_error(model):
        return load(*args, **kwargs)
