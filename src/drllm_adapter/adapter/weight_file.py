"""Is this file what its adapter's configuration says it is? Read from the header alone, before anything is loaded.

safetensors (https://huggingface.co/docs/safetensors): eight bytes with the length of the header, the header as JSON
with type, shape and place of every tensor, then the tensors.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DrLLMError

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LONGEST_ENTRY = 1024
_LONGEST_METADATA = 65_536
_LONGEST_HEADER = 1 << 20


def check_weight_file(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Refuse a weight file that does not hold exactly the routers it must hold, or is damaged in its header.

    Takes no more memory than the header, which itself is bounded by what these routers need.

    Args:
        path: of `adapter_model.safetensors`.
        shapes: of every weight by `"<block>.<parameter>"`; None where the configuration does not say, and then only
            the file itself is checked.

    Raises:
        DrLLMError: it is no regular file, no safetensors file, longer or shorter than its header says, or holds
            something else than these weights.
    """
    try:
        with _open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            longest = _LONGEST_HEADER if shapes is None else _LONGEST_METADATA + _LONGEST_ENTRY * len(shapes)
            if size < 8 or length > size - 8:
                raise _refusal(path, "it is too short for a header")
            if length > longest:
                raise _refusal(path, f"its header claims {length:,} bytes where at most {longest:,} make sense")
            header = _parse(path, file.read(length))
    except OSError as error:
        raise _refusal(path, f"it could not be read ({os.strerror(error.errno or 0)})") from error
    header.pop("__metadata__", None)
    _check_layout(path, header, size - 8 - length)
    if shapes is not None:
        _check_shapes(path, header, shapes)


def _open_regular(path: str | os.PathLike[str]) -> Any:
    # A pipe or a device would hang or never end; opened first and looked at then, so that it stays the same file.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _refusal(path, "it is no regular file")
    return os.fdopen(handle, "rb")


def _parse(path: str | os.PathLike[str], content: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise _refusal(path, "a name occurs twice in its header")
        return dict(pairs)

    try:
        header = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DrLLMError):
            raise
        raise _refusal(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise _refusal(path, "its header is no JSON object")
    return header


def _check_layout(path: str | os.PathLike[str], header: Mapping[str, Any], data: int) -> None:
    """The tensors must fill the `data` bytes behind the header, without gaps and overlaps."""
    places = []
    for name, entry in header.items():
        try:
            kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, first, last]
        except (TypeError, KeyError, ValueError):
            raise _refusal(path, f"the header's entry for {name[:80]!r} is incomplete") from None
        if kind not in _BYTES:
            raise _refusal(path, f"{name[:80]!r} is of type {str(kind)[:20]!r} instead of floating-point numbers")
        if not all(type(number) is int and 0 <= number <= data for number in numbers):
            raise _refusal(path, f"the header claims sizes for {name[:80]!r} that the file has not")
        count = 1
        for number in shape:
            count *= number
        if last - first != count * _BYTES[kind]:
            raise _refusal(path, f"{name[:80]!r} has {last - first} bytes where its shape needs {count * _BYTES[kind]}")
        places.append((first, last))
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise _refusal(path, "its tensors overlap or leave gaps")
        end = last
    if end != data:
        raise _refusal(path, f"it has {data:,} bytes of tensors where its header says {end:,}")


def _check_shapes(path: str | os.PathLike[str], header: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    found: dict[str, tuple[int, ...]] = {}
    for name, entry in header.items():
        block, marker, parameter = name.partition(".drllm_router.")
        short = f"{block.rpartition('.')[2]}.{parameter}"
        if not marker or short not in shapes or short in found:
            raise _refusal(path, f"{name[:80]!r} belongs to no router")
        found[short] = tuple(entry["shape"])
    missing = sorted(shapes.keys() - found.keys())
    if missing:
        raise _refusal(path, f"{len(missing)} of {len(shapes)} weights are missing, the first being {missing[0]}")
    for short, shape in found.items():
        if shape != shapes[short]:
            raise _refusal(path, f"{short} has shape {list(shape)} instead of {list(shapes[short])}")


def _refusal(path: str | os.PathLike[str], problem: str) -> DrLLMError:
    return DrLLMError(
        f"{Path(path)} must be a safetensors file with exactly the weights of the routers that adapter_config.json "
        f"describes, but {problem}; download or save the adapter again."
    )


def refuse_pickle(place: str) -> DrLLMError:
    """What to raise when an adapter offers pickled weights alone."""
    return DrLLMError(
        f"the adapter {place} must have its weights in {WEIGHTS}, but it has only a pickle, {PICKLE}, which could run "
        f"code when it is read; save it again as safetensors."
    )
