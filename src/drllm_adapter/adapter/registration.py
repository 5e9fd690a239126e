"""Make `DRLLM` a PEFT method, through PEFT's own `register_peft_method`."""

from collections.abc import Callable
from typing import Any

import wrapt
from peft import PeftModel, PeftType
from peft.utils import register_peft_method

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


def _check_saving(save: Callable[..., None], model: PeftModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # PEFT asks a method for its weights, but does not say which kind of file they are for, nor what lies below.
    from .other_adapters import warn_of_unsaved  # needs the method to be registered

    if model.peft_type == NAME:
        if not (args[1] if len(args) > 1 else kwargs.get("safe_serialization", True)):
            raise DrLLMError(
                "the weights of a router adapter must be saved as safetensors, but safe_serialization=False was given; "
                "leave it out."
            )
        warn_of_unsaved(model)
    save(*args, **kwargs)
