"""Make `DRLLM` a PEFT method, through PEFT's own `register_peft_method`."""

from peft import PeftType
from peft.utils import register_peft_method

NAME = "DRLLM"


def _add_peft_type() -> None:
    # register_peft_method only accepts members of PeftType and Python enums have no call that adds one: this is the
    # one place that touches an internal of PEFT.
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
