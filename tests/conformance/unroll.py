"""The unrolled model of any architecture: an ordinary model whose layer list is the path."""

import copy
from typing import Any

from torch import nn

INDEX_NAMES = ("layer_idx", "layer_index", "layer_id", "block_idx", "layer_number")

KIND_NAMES = ("layer_types", "layers_block_type")

COUNT_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")


def layer_list(model: nn.Module, num_blocks: int) -> tuple[nn.Module, str]:
    """The module that owns the decoder's list of blocks, and its attribute; a vision tower may have such a list too."""
    lists = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == num_blocks]
    name = min(lists, key=lambda name: ("visual" in name or "vision" in name, name.count(".")))
    return model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]


def unrolled(model: Any, decisions: list[int]) -> Any:
    """A copy whose blocks are the path's, with copies of the weights; each position has its own index in the cache."""
    path = [block for block, times in enumerate(decisions) for _ in range(times)]
    model = copy.deepcopy(model)
    owner, attribute = layer_list(model, len(decisions))
    blocks = getattr(owner, attribute)
    # The configuration is shared by the whole model and stays shared.
    kept = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    kinds = {key: _lists_of_kinds(config) for key, config in kept.items()}
    setattr(owner, attribute, nn.ModuleList([copy.deepcopy(blocks[block], dict(kept)) for block in path]))
    for position, block in enumerate(getattr(owner, attribute)):
        for module in block.modules():
            for name in INDEX_NAMES:
                if isinstance(vars(module).get(name), int):
                    setattr(module, name, position)
    for config in kept.values():
        for name, value in list(vars(config).items()):
            if isinstance(value, (list, tuple)) and len(value) == len(decisions) and not name.startswith("_"):
                setattr(config, name, [value[block] for block in path])
            elif name in COUNT_NAMES and value == len(decisions):
                setattr(config, name, len(path))
        _unroll_properties(config, kinds.get(id(config), {}), path)
    return model


def _lists_of_kinds(config: Any) -> dict[str, list[Any]]:
    """What the configuration works out about each block (Bamba and Jamba: which have attention) rather than stores."""
    names = [name for name in KIND_NAMES if isinstance(getattr(type(config), name, None), property)]
    return {name: list(getattr(config, name)) for name in names}


def _unroll_properties(config: Any, kinds: dict[str, list[Any]], path: list[int]) -> None:
    if kinds:
        lists = {name: [values[block] for block in path] for name, values in kinds.items()}
        config.__class__ = type(type(config).__name__, (type(config),), lists)
