"""Find the decoder blocks inside a transformers model."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import DrLLMError

PROVEN_MODEL_TYPES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
"""Architectures for which the tests prove routed execution equal to the unrolled model."""


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

    Raises:
        DrLLMError: the architecture is not one that is proven to run exactly, or no stack is found.
    """
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type not in PROVEN_MODEL_TYPES:
        raise DrLLMError(
            f"the base model's architecture must be one of {', '.join(PROVEN_MODEL_TYPES)}, but it is "
            f"{model_type or type(model).__name__}, for which routed execution is not proven exact; "
            f"use a base of one of these architectures."
        )
    num_blocks = config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks:
            owner = model.get_submodule(name.rpartition(".")[0])
            return Stack(owner, module, name, model_type, config.hidden_size)
    raise DrLLMError(
        f"a {model_type} model must have a list of {num_blocks} decoder blocks, but none was found in this "
        f"{type(model).__name__}; load the model with AutoModelForCausalLM."
    )
