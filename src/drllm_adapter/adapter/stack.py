"""Find the decoder blocks inside a transformers model, and what its forward loop expects of them."""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import cached_property
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

    @cached_property
    def num_outputs(self) -> int | None:
        """How many values a block returns; None when it is the hidden states alone."""
        return num_outputs(self.blocks[0])


def find_stack(model: nn.Module) -> Stack:
    """The decoder stack of `model`.

    It is the outermost list of as many modules as the (text) configuration has blocks, inside what the model calls its
    decoder: a vision tower may have as many blocks.

    Raises:
        DrLLMError: the architecture is not one that is proven to run exactly, or no stack is found.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    model_type = getattr(text, "model_type", None)
    if model_type not in EXACT:
        reason = REFUSED.get(str(model_type), "routed execution is not proven exact for it")
        raise DrLLMError(
            f"the base model's architecture must be one of the {len(EXACT)} that routed execution is proven exact for "
            f"(drllm_adapter.adapter.architectures.EXACT), but {model_type or type(model).__name__} is not ({reason}); "
            f"use a base of another architecture."
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
    # ModernBERT calls its output layer the decoder, so that counts only where it holds a list.
    decoder = set(_decoder(model).modules())
    lists = [(name, blocks) for name, blocks in lists if blocks in decoder] or lists
    # Experts and the like may be as many as the blocks; they lie deeper.
    name, blocks = min(lists, key=lambda item: item[0].count("."))
    owner = model.get_submodule(name.rpartition(".")[0])
    return Stack(owner, blocks, name, text.model_type, text.hidden_size)


def _decoder(model: Any) -> nn.Module:
    """What the model says is its decoder; the whole model when it says nothing."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return decoder if isinstance(decoder, nn.Module) else model


def num_outputs(block: nn.Module) -> int | None:
    """How many values `block` returns in a tuple; None when it returns the hidden states alone.

    A block that is skipped before any block has run must stand in for what it would have returned, so this is read
    from the source of its `forward`: what its `return` statements say.
    """
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(block).forward)))
    statements = list(ast.walk(ast.parse(source)))
    tuples = {
        target.id: statement.value
        for statement in statements
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Tuple)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for statement in statements:
        if isinstance(statement, ast.Return):
            value = statement.value
            if isinstance(value, ast.Name):
                value = tuples.get(value.id)
            if isinstance(value, ast.Tuple):
                return len(value.elts)
    return None
