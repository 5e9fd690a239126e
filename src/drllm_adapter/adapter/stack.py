"""Find the decoder blocks inside a transformers model, and how its forward loop calls them."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import DrLLMError
from .architectures import EXACT, REFUSED


@dataclass(frozen=True)
class Stack:
    """The decoder stack: the module that owns the list of blocks, and the list's name inside the whole model."""

    owner: nn.Module
    blocks: nn.ModuleList
    name: str
    model_type: str
    hidden_size: int


def find_stack(model: nn.Module) -> Stack:
    """The decoder stack of `model`.

    It is the outermost list of as many modules as the (text) configuration has blocks.

    Raises:
        DrLLMError: the architecture is not one that is proven to run exactly, or no stack is found.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    model_type = getattr(text, "model_type", None)
    if model_type not in EXACT:
        reason = REFUSED.get(str(model_type), "routed execution is not proven exact for it")
        raise DrLLMError(
            f"the base model's architecture must be one that docs/architectures.md lists as exact, but "
            f"{model_type or type(model).__name__} is not ({reason}); use a base of another architecture."
        )
    return locate_stack(model)


def locate_stack(model: nn.Module) -> Stack:
    """The decoder stack of a model of any architecture; `find_stack` admits those that are proven.

    Raises:
        DrLLMError: there is none.
    """
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    num_blocks = text.num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks
    ]
    if not lists:
        raise DrLLMError(
            f"a {text.model_type} model must have a list of {num_blocks} decoder blocks, but none was found in this "
            f"{type(model).__name__}; load the model with AutoModelForCausalLM."
        )
    # Experts and the like may be as many as the blocks; they lie deeper.
    name, blocks = min(lists, key=lambda item: item[0].count("."))
    owner = model.get_submodule(name.rpartition(".")[0])
    return Stack(owner, blocks, name, text.model_type, text.hidden_size)
