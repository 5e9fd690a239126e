"""Models to measure: known shapes with random weights, and the unrolled model that routing is compared with."""

import copy
import random
import re
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ..adapter.hooks import detach
from ..adapter.layer import routed_layers
from ..adapter.stack import find_stack, locate_stack
from ..decisions import Decisions, execute_all, to_path
from ..demo import BASE
from ..errors import DrLLMError
from ..models.loading import load_base

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama-3.2-3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama-3.1-70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
"""Shapes of known models, to be filled with random weights: speed does not depend on what the weights say."""


def sizes_of(shape: str) -> dict[str, Any]:
    """A known shape, by the names of the configuration.

    Raises:
        DrLLMError: it has no such name.
    """
    if shape not in SHAPES:
        raise DrLLMError(f"shape must be one of {', '.join(SHAPES)}, but {shape!r} was given; choose one of them.")
    return SHAPES[shape]


def random_model(shape: str, dtype: torch.dtype, device: str, **changes: int) -> Any:
    """A Llama of a known shape with random weights, made on `device`.

    Args:
        changes: what is different from the shape, by the names of the configuration.

    Raises:
        DrLLMError: the shape has no such name.
    """
    config = LlamaConfig(**sizes_of(shape) | changes, tie_word_embeddings=True, max_position_embeddings=4096)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


class StandInTokenizer:
    """For models with random weights: about as many tokens as a real tokenizer makes of English, with hashes as ids."""

    chat_template = None
    pad_token_id = eos_token_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, text: str, add_special_tokens: bool = True, return_tensors: str | None = None) -> dict[str, Any]:
        ids = [
            1 + zlib.crc32(word.encode()) % (self.vocab_size - 1) for word in re.findall(r" ?\w{1,7}|\s|[^\w\s]", text)
        ]
        return {"input_ids": torch.tensor([ids]) if return_tensors == "pt" else ids}

    def decode(self, ids: Tensor, skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids.tolist()))


def share(module: nn.Module) -> Any:
    """A copy of the module tree with the same parameters."""
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else share(child) for name, child in module._modules.items()}
    for name in ("_parameters", "_buffers", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"):
        setattr(twin, name, copy.copy(getattr(module, name)))
    return twin


def without_routers(model: Any) -> Any:
    """The base model inside one with a router adapter, as a twin with the same parameters; `model` stays as it is."""
    twin = share(model.get_base_model())
    blocks = locate_stack(twin).blocks
    for layer in routed_layers(twin):
        blocks[layer.index] = layer.base_layer
    detach(twin)
    return twin


def unroll(model: Any, decisions: Decisions) -> Any:
    """The ordinary model whose layer list is the path: weights shared, each position its own `layer_idx`."""
    twin = share(model)
    stack = find_stack(twin)
    path = to_path(decisions)
    blocks = nn.ModuleList([share(stack.blocks[block]) for block in path])
    for position, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", position)  # noqa: B010 - a plain attribute, not a submodule
    setattr(stack.owner, stack.name.rpartition(".")[2], blocks)
    twin.config = stack.owner.config = copy.deepcopy(model.config)
    twin.config.num_hidden_layers = len(path)
    if getattr(twin.config, "layer_types", None) is not None:
        twin.config.layer_types = [model.config.layer_types[block] for block in path]
    return twin


def mixed_path(num_blocks: int, seed: int = 0) -> Decisions:
    """A path with as many repeats as skips, about an eighth of the blocks each."""
    chosen = random.Random(seed).sample(range(num_blocks), 2 * max(1, num_blocks // 8))
    decisions = list(execute_all(num_blocks))
    for place, block in enumerate(chosen):
        decisions[block] = 0 if place % 2 else 2
    return tuple(decisions)


def model_to_measure(
    base: str | None, shape: str | None, *, dtype: str = "auto", device: str | None = None
) -> tuple[Any, Any]:
    """The model of a benchmark and its tokenizer; random weights get a `StandInTokenizer`.

    Args:
        base: folder or Hub name; None is the package's small model.
        shape: a name in `SHAPES` instead: random weights, in bfloat16 by default.

    Raises:
        DrLLMError: both a base and a shape, or see `random_model` and `load_base`.
    """
    if base is not None and shape is not None:
        raise DrLLMError("one model can be measured at a time, but a model and --shape were given; drop one of them.")
    if shape is not None:
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = random_model(shape, torch.bfloat16 if dtype == "auto" else getattr(torch, dtype), place)
        return model, StandInTokenizer(model.config.vocab_size)
    return load_base(base or str(BASE), dtype=dtype, device=device)
