"""A static path as an ordinary checkpoint: the base's own tensors under the names that the unrolled model gives them.

No weight is loaded into a model. Configurations decide what is expressible: both models are built without memory for
their weights, and every block of the new one must be the block of the base that the path names.
"""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from ..adapter.stack import Stack, find_stack
from ..decisions import Decisions, check, to_path
from ..errors import DrLLMError, refusing
from ..files import replacing, write_json_atomic, writing
from .download import split_revision

UNROLLED = "unrolled.json"
"""What the folder's checkpoint is: base, decisions, how they were chosen, what was measured."""
MAX_SHARD = "5GB"
# Lists that say something else than what each block is, however many entries they have.
_NO_BLOCKS = re.compile(r"token|architectures|_id$|_ids$|labels")
# Lists of block indices, and numbers of blocks at the beginning of the stack.
_INDICES = ("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "attn_layer_idx", "moe_layers_idx", "moe_layers")
_FIRST = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers", "max_window_layers", "mtp_start_layer")


@dataclass(frozen=True)
class Base:
    """What is known of a base model before its weights are read.

    Attributes:
        name: folder or Hub name, with its revision.
        stack: of the model built without memory for weights.
        commit: on the Hub; None of a folder.
    """

    name: str
    config: Any
    stack: Stack
    model: nn.Module
    commit: str | None

    @property
    def num_blocks(self) -> int:
        return len(self.stack.blocks)


def look_at_base(name: str) -> Base:
    """The configuration of a base model, and its modules without weights.

    Raises:
        DrLLMError: there is none, or its architecture is not one that routes exactly.
    """
    where, revision = split_revision(name)
    # Whatever a library makes of a missing, damaged or foreign folder.
    with refusing(
        f"the base model {name!r} must be a folder or a Hub name with a causal language model, but reading its "
        "configuration failed",
        "correct the name",
    ):
        config = AutoConfig.from_pretrained(where, revision=revision)
        commit = extract_commit_hash(cached_file(where, "config.json", revision=revision, local_files_only=True), None)
        model = _without_weights(config)
    return Base(name, config, find_stack(model), model, commit)


def write_unrolled(base: Base, decisions: Decisions, folder: Path, *, max_shard: int | str = MAX_SHARD) -> None:
    """Write configuration, tokenizer, generation configuration and weights of the path's model into an empty folder.

    Takes the memory of one shard, at most `max_shard` or the largest tensor.

    Raises:
        DrLLMError: no configuration of the architecture describes that model; the base's weights are no safetensors
            or lie in another way; the disk is full.
    """
    path = to_path(check(decisions, base.num_blocks))
    if not path:
        raise DrLLMError("a checkpoint must have at least one block, but the path skips all of them; execute some.")
    _refuse_named_blocks(base)
    _write_config(base, path, folder)
    where, revision = split_revision(base.name)
    with refusing(
        f"the base model {base.name!r} must come with its tokenizer, but loading that failed",
        "download the model again",
    ):
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
    with writing(folder):
        tokenizer.save_pretrained(folder)
        if _file(base.name, "generation_config.json") is not None:
            GenerationConfig.from_pretrained(where, revision=revision or "main").save_pretrained(folder)
    _write_weights(base, path, folder, max_shard)


def unrolled_config(config: Any, path: Sequence[int]) -> Any:
    """A copy of the configuration for the path's model: its number of blocks, and its lists with an entry a block."""
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    num_blocks = text.num_hidden_layers
    new: dict[str, Any] = {}
    for name, value in vars(text).items():
        if name.startswith("_") or _NO_BLOCKS.search(name):
            continue
        if name == "attention_types":  # GPT-Neo: kinds, and how often they come in turn
            new[name] = [[_along(text.attention_layers, path), 1]]
        elif name in _INDICES and isinstance(value, (list, tuple)):
            new[name] = [place for place, block in enumerate(path) if block in value]
        elif name in _FIRST and isinstance(value, int):
            new[name] = sum(block < value for block in path) + max(0, value - num_blocks)
        elif isinstance(value, (list, tuple)) and len(value) == num_blocks:
            new[name] = _along(value, path)
    text.num_hidden_layers = len(path)
    for name, value in new.items():
        setattr(text, name, value)
    return config


def _without_weights(config: Any) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


# Is it that model?


def _write_config(base: Base, path: Sequence[int], folder: Path) -> None:
    """Write the configuration, build the model that it describes, and compare that with the base, module by module."""
    model_type = base.stack.model_type
    with refusing(
        f"a plain {model_type} configuration must describe the path, but it describes no model",
        "keep the path in an adapter, or choose another",
    ):
        with writing(folder):
            unrolled_config(base.config, path).save_pretrained(folder)
        model = _without_weights(AutoConfig.from_pretrained(folder))
        blocks = model.get_submodule(base.stack.name)
    assert isinstance(blocks, nn.ModuleList)
    for place, block in enumerate(path):
        difference = _difference(base.stack.blocks[block], blocks[place], path, place)
        if difference is not None:
            raise DrLLMError(
                f"a plain {model_type} configuration must describe the path, but in place {place} block {block} would "
                f"be another ({difference}), because this architecture works that out from the place; choose a path "
                f"without it, or keep the path in an adapter."
            )
    prefix = base.stack.name + "."
    around = [
        {name: weight.shape for name, weight in whole.state_dict().items() if not name.startswith(prefix)}
        for whole in (base.model, model)
    ]
    if around[0] != around[1]:
        other = next(name for name in around[0] | around[1] if around[0].get(name) != around[1].get(name))
        raise DrLLMError(
            f"a {model_type} model must have the same weights around its blocks whatever their number, but {other} "
            f"depends on it; keep the path in an adapter."
        )


def _difference(block: nn.Module, new: nn.Module, path: Sequence[int], place: int) -> str | None:
    """What tells two blocks apart beside the index that each has in its stack; None when nothing does."""
    mine, its = dict(block.named_modules()), dict(new.named_modules())
    for name in mine | its:
        was, would = (type(modules.get(name)).__name__ for modules in (mine, its))
        if was != would:
            return f"{name or 'it'} a {would} in place of a {was}"
        for attribute, value in vars(mine[name]).items():
            other = vars(its[name]).get(attribute)
            if attribute.startswith("_") or not _is_plain(value) or value == other:
                continue
            is_index = type(value) is type(other) is int and (value, other) == (path[place], place)
            # Some keep the list of what all blocks are.
            is_list = isinstance(value, (list, tuple)) and list(other or ()) == _along(value, path)
            if not is_index and not is_list:
                return f"{f'{name}.{attribute}'.lstrip('.')} {other!r} in place of {value!r}"
    shapes = [{name: (weight.shape, weight.dtype) for name, weight in b.state_dict().items()} for b in (block, new)]
    if shapes[0] != shapes[1]:
        return "weights of other shapes"
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _along(values: Sequence[Any], path: Sequence[int]) -> list[Any]:
    return [values[block] for block in path if block < len(values)]


def _refuse_named_blocks(base: Base) -> None:
    """Settings of a quantisation may name blocks by their index, in ways that differ between its methods."""
    quantization = getattr(base.config, "quantization_config", None)
    if quantization is None:
        return
    plain = quantization if isinstance(quantization, dict) else quantization.to_dict()
    leaf = base.stack.name.rpartition(".")[2]
    if re.search(rf"\b{re.escape(leaf)}\\*\.\d", json.dumps(plain, default=str)):
        raise DrLLMError(
            f"the quantization of a base must hold for all blocks alike to be unrolled, but that of {base.name!r} "
            f"names single ones; unroll the model that was quantized, and quantize the result."
        )


# Weights


@dataclass(frozen=True)
class _Tensor:
    file: Path
    name: str
    num_bytes: int


def _write_weights(base: Base, path: Sequence[int], folder: Path, max_shard: int | str) -> None:
    tensors = _renamed(base, path)
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard,
    )
    with writing(folder):
        for file, names in split.filename_to_tensors.items():
            with (
                refusing(
                    f"{folder / file} could not be written", "free some space or choose another folder", SafetensorError
                ),
                replacing(folder / file) as temporary,
            ):
                save_file(_read([(name, tensors[name]) for name in names]), temporary, {"format": "pt"})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            write_json_atomic(folder / SAFE_WEIGHTS_INDEX_NAME, index)


def _read(wanted: Sequence[tuple[str, _Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors by their new names. What a second pass shares with a first is copied: a file holds it twice."""
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(safe_open(file, "pt")) for file in dict.fromkeys(item.file for _, item in wanted)
        }
        tensors = {name: files[item.file].get_tensor(item.name) for name, item in wanted}
        first = {item: name for name, item in reversed(wanted)}
        return {name: tensors[name] if first[item] == name else tensors[name].clone() for name, item in wanted}


def _renamed(base: Base, path: Sequence[int]) -> dict[str, _Tensor]:
    """Every tensor of the checkpoint under its names in the unrolled model, in the order of the checkpoint."""
    found = [
        _Tensor(file, name, number) for file in _weight_files(base.name) for name, number in _headers(file, base.name)
    ]
    inside = re.compile(
        rf"(?P<head>(?:.*?\.)?{re.escape(base.stack.name.rpartition('.')[2])}\.)(?P<block>\d+)(?P<tail>\..*)"
    )
    matches = {tensor: inside.fullmatch(tensor.name) for tensor in found}
    heads = {match["head"] for match in matches.values() if match is not None}
    if len(heads) > 1:  # other towers have such a list, too
        heads &= {base.stack.name + "."}
    blocks = {int(match["block"]) for match in matches.values() if match is not None and match["head"] in heads}
    if len(heads) != 1 or not blocks >= set(range(base.num_blocks)):
        raise DrLLMError(
            f"the weights of {base.name!r} must lie block by block below {base.stack.name}, but they lie in another "
            f"way; load the model with transformers and save it again."
        )
    places = {block: [place for place, its in enumerate(path) if its == block] for block in blocks}
    renamed: dict[str, _Tensor] = {}
    for tensor, match in matches.items():
        if match is None or match["head"] not in heads:
            renamed[tensor.name] = tensor
            continue
        # Behind the last block some checkpoints keep one that predicts further tokens; transformers leaves it out.
        for place in places[int(match["block"])]:
            renamed[f"{match['head']}{place}{match['tail']}"] = tensor
    return renamed


def _weight_files(name: str) -> list[Path]:
    index = _file(name, SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = [SAFE_WEIGHTS_NAME]
    found = [_file(name, file) for file in files]
    present = [file for file in found if file is not None]
    if len(present) < len(files):
        raise DrLLMError(
            f"the base model {name!r} must have its weights as safetensors ({SAFE_WEIGHTS_NAME}), but "
            f"{files[found.index(None)]} is missing; load the model with transformers and save it again."
        )
    return present


def _headers(file: Path, name: str) -> Iterator[tuple[str, int]]:
    """Names and bytes of a file's tensors."""
    try:
        with open(file, "rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        for tensor, entry in header.items():
            if tensor != "__metadata__":
                first, last = entry["data_offsets"]
                yield tensor, last - first
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DrLLMError(
            f"{file.name} of the base model {name!r} must be a safetensors file, but it is damaged; download it again."
        ) from error


def _file(name: str, file: str) -> Path | None:
    """A file of the base, downloaded where it lies on the Hub; None when there is none."""
    where, revision = split_revision(name)
    with refusing(f"{file} of the base model {name!r} could not be downloaded", "look at the network and try again"):
        found = cached_file(
            where, file, revision=revision, _raise_exceptions_for_missing_entries=False,
        )  # fmt: skip
    return None if found is None else Path(found)
