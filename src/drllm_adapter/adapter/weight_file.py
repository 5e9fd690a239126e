"""Is this file what its adapter's configuration says it is? By its header alone, before any weight is loaded."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import DrLLMError, first_sentence

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
_LONGEST_ENTRY = 1024
_LONGEST_METADATA = 65_536
_LONGEST_HEADER = 1 << 20


def check_weight_file(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Refuse a weight file that does not hold exactly the routers it must hold, or is damaged in its header.

    Args:
        path: of `adapter_model.safetensors`.
        shapes: of every weight by `"<block>.<parameter>"`; None where the configuration does not say, and then only
            the file itself is checked.

    Raises:
        DrLLMError: it is no regular file, no safetensors file, longer or shorter than its header says, or holds
            something else than these weights.
    """
    try:
        if not Path(path).is_file():
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # safetensors reads headers of up to 100 MB, and takes the last of two entries of one name.
            longest = _LONGEST_HEADER if shapes is None else _LONGEST_METADATA + _LONGEST_ENTRY * len(shapes)
            if length > longest:
                raise ValueError(f"its header claims {length:,} bytes where at most {longest:,} make sense")
            json.loads(file.read(length), object_pairs_hook=_each_once)
        with safe_open(path, framework="pt") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        problem = None if shapes is None else differing(found, shapes)
        if problem is not None:
            raise ValueError(problem)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise DrLLMError(
            f"{Path(path)} must be a safetensors file with exactly the weights of the routers that adapter_config.json "
            f"describes, but {first_sentence(error)}; download or save the adapter again."
        ) from error


def differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """What is wrong with names and shapes, in words; None when nothing is.

    Args:
        found: shapes by the names in a file.
        expected: shapes by `"<block>.<parameter>"`.
    """
    by_name = {short_name(key): (key, shape) for key, shape in found.items()}
    if missing := sorted(expected.keys() - by_name.keys()):
        return f"{len(missing)} of {len(expected)} weights are missing, the first being {missing[0]}"
    if len(found) > len(expected):
        key = next(key for key in found if by_name[short_name(key)][0] != key or short_name(key) not in expected)
        return f"{key[:80]} belongs to no router"
    for name, (_, shape) in by_name.items():
        if tuple(shape) != tuple(expected[name]):
            return f"{name} has shape {list(shape)} instead of {list(expected[name])}"
    return None


def short_name(key: str, adapter_name: str | None = None) -> str:
    """`"...layers.3.drllm_router.default.up.bias"` is `"3.up.bias"`; without a name as it stands in a file."""
    block, marker, parameter = key.partition(f".drllm_router.{adapter_name}." if adapter_name else ".drllm_router.")
    if not marker:
        return key  # of no router, and called so in messages
    return f"{block.rpartition('.')[2]}.{parameter}"


def refuse_pickle(place: str) -> DrLLMError:
    """What to raise when an adapter offers pickled weights alone."""
    return DrLLMError(
        f"the adapter {place} must have its weights in {WEIGHTS}, but it has only a pickle, {PICKLE}, which could run "
        f"code when it is read; save it again as safetensors."
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    return values
