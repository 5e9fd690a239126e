"""Which base model is this? What an adapter and a supervision set remember of the model they were made with."""

import hashlib
import json
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

_SAMPLES = 64
_FIRST_TOKENS = 32
_VERSION = "2-"
# Names of what stands between a model and its weights.
_WRAPPERS = ("base_layer", "original_module", "_orig_mod")
# Dimensions that every version of transformers names alike, and that neither a resized vocabulary nor a longer context
# changes.
_DIMENSIONS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)


def config_hash(model: Any) -> str:
    """A hash of the dimensions in the base's configuration."""
    text = model.config.get_text_config(decoder=True)
    values = {name: _dimension(text, name) for name in _DIMENSIONS}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _dimension(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except RuntimeError:  # what transformers raises for a value that differs between blocks
        return None


def revision(model: Any) -> str | None:
    """The commit on the Hub that the base was loaded from; None where it was not."""
    value = getattr(model.config, "_commit_hash", None)
    return value if isinstance(value, str) else None


def fingerprint(model: nn.Module) -> str:
    """A hash that tells a base from its own fine-tuning: of each weight, name, shape and some values spread over it.

    Not all values, so that it takes milliseconds for models of any size. The dtype counts only through the rounding of
    the values; they are compared as bfloat16, so the float32 and the bfloat16 copy of a checkpoint agree. It covers
    what routers depend on: not the head, not how long the vocabulary is padded, not whether blocks are compiled, and no
    weights of adapters.
    """
    return _VERSION + _hash(model, of_router_inputs=True)


def is_fingerprint_of(recorded: str, model: nn.Module) -> bool:
    """Whether `recorded` is of this model; those without a version covered the head and the whole vocabulary."""
    return recorded == (fingerprint(model) if recorded.startswith(_VERSION) else _hash(model, of_router_inputs=False))


def _hash(model: Any, *, of_router_inputs: bool) -> str:
    left_out = _adapter_parameters(model)
    embeddings: set[int] = set()
    if of_router_inputs:
        embeddings = _parameters_of(model, "get_input_embeddings")
        left_out |= _parameters_of(model, "get_output_embeddings") - embeddings
    digest = hashlib.sha256()
    wrappers = _WRAPPERS if of_router_inputs else ("base_layer",)
    for name, weight in sorted(model.named_parameters()):
        if id(weight) in left_out:
            continue
        plain = ".".join(part for part in name.split(".") if part not in wrappers).removeprefix("base_model.model.")
        padded = id(weight) in embeddings
        digest.update(f"{plain} {tuple(weight.shape[1:] if padded else weight.shape)}".encode())
        values = _offloaded(model, name) if weight.device.type == "meta" else weight
        if values is not None:
            flat = (values[:_FIRST_TOKENS] if padded else values).detach().flatten()
            spread = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
            digest.update(spread.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _offloaded(model: nn.Module, name: str) -> torch.Tensor | None:
    """The values of a weight that accelerate keeps on the CPU or the disk until its block runs; None without any."""
    owner, _, leaf = name.rpartition(".")
    weights_map = getattr(getattr(model.get_submodule(owner), "_hf_hook", None), "weights_map", None)
    return None if weights_map is None else weights_map[leaf]


def comparable_fingerprint(model: nn.Module) -> str | None:
    """`fingerprint`, or None where it says nothing: weights elsewhere, sharded, quantised, or rounded to float16."""
    for weight in model.parameters():
        if weight.device.type == "meta" or not weight.numel() or weight.dtype not in (torch.float32, torch.bfloat16):
            return None
    return fingerprint(model)


def _parameters_of(model: Any, getter: str) -> set[int]:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):  # no such embeddings, or no transformers model
        return set()
    return set() if module is None else {id(parameter) for parameter in module.parameters()}


def _adapter_parameters(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        for name in module.adapter_layer_names
        if isinstance(part := getattr(module, name, None), nn.Module)
        for parameter in part.parameters()
    }
