"""The independent truth: an ordinary transformers model whose layer list is the path."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 61

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "gpt2": {},
}
"""Architectures and what makes them interesting; Qwen2 mixes full and sliding attention, Mistral slides throughout."""


def tiny_model(model_type: str, num_blocks: int = 5, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A small random model of an architecture, in float32 and evaluation mode."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if model_type != "gpt2":
        shape["intermediate_size"] = 48
    config = CONFIG_MAPPING[model_type](**{**shape, **SIZES[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=changes.get("attn_implementation", "sdpa"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than the default, so that every block matters and paths differ in their tokens.
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def unrolled(model: PreTrainedModel, decisions: list[int]) -> PreTrainedModel:
    """The model whose blocks are the path's, each position with its own `layer_idx` and copies of the weights."""
    path = [block for block, times in enumerate(decisions) for _ in range(times)]
    model = copy.deepcopy(model)
    owner, name = (model.transformer, "h") if hasattr(model, "transformer") else (model.model, "layers")
    blocks = getattr(owner, name)
    setattr(owner, name, nn.ModuleList([copy.deepcopy(blocks[block]) for block in path]))
    for position, block in enumerate(getattr(owner, name)):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
    for config in {id(c): c for c in (model.config, owner.config)}.values():
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = [config.layer_types[block] for block in path]
        config.num_hidden_layers = len(path)
    return model
