"""How uploaded files name their base model: as on the Hub, or by the name of its folder, never by a path of this disk.

PEFT writes the folder of a base that was loaded from one into `adapter_config.json`, and searches, trainings and
evaluations remember it, too. A stranger cannot load that, and need not see it: the last part of the path goes along,
written `./name`, which no repository on the Hub can be called.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from peft.utils import CONFIG_NAME
from transformers import AutoConfig

from ..adapter.base_identity import config_hash
from ..adapter.integrity import read_adapter_config
from ..demo import is_demo
from ..errors import DrLLMError, refusing
from ..files import write_json_atomic
from ..models.download import is_hub_name, split_revision
from ..models.hub_errors import explained
from ..models.unroll import UNROLLED
from ..supervision.rows import DATA, INFO, read_search_info

# Where the files of adapters, supervision sets and evaluations name their base.
_FIELDS = ("base_model_name_or_path", "base_model", "base")
_COLUMN = "base_model"


def check_base(base: str, folder: Path) -> None:
    """Refuse a base that is not on the Hub, or that cannot be that of the adapter or the supervision set in `folder`.

    Raises:
        DrLLMError: as above; by dimensions alone, its weights are compared when they are loaded.
    """
    name, revision = split_revision(base)
    if not is_hub_name(name):
        raise DrLLMError(f"the base must be named as on the Hub, owner/name, but {base!r} is a folder; correct --base.")
    # The Hub has it, and transformers makes nothing of it.
    with (
        refusing(
            f"the base {base} must be a model that transformers knows, but reading its configuration failed",
            "correct --base",
            ValueError,
        ),
        explained(base, "looked at"),
    ):
        config = AutoConfig.from_pretrained(name, revision=revision)
    made_for: str | int | None
    if (folder / CONFIG_NAME).is_file():
        made_for, found = read_adapter_config(folder).base_config, config_hash(SimpleNamespace(config=config))
        what = "dimensions"
    else:
        unrolled = folder / UNROLLED
        made_for = len(_read(unrolled)["decisions"]) if unrolled.is_file() else read_search_info(folder)["num_blocks"]
        found = config.get_text_config(decoder=True).num_hidden_layers
        what = "blocks"
    if made_for is not None and made_for != found:
        raise DrLLMError(
            f"{folder} must be pushed with the base that it was made for ({what} {made_for}), but {base} is another "
            f"({what} {found}); correct --base."
        )


def share_base(folder: Path, base: str | None = None) -> str:
    """Rewrite the files of an adapter, a supervision set or a checkpoint for a place where others read them.

    Args:
        folder: a copy; large files may be links, and what they lead to stays as it is.
        base: `owner/name` or `owner/name@revision`; None keeps the name that the files have, or that of the folder.

    Returns:
        The base as the files name it now; "" when they name none.

    Raises:
        DrLLMError: a file is no JSON.
    """
    unrolled = folder / UNROLLED
    if unrolled.is_file():
        # The other files are the base's: configuration and tokenizer, whose tokens may look like paths.
        told = _read(unrolled)
        old = str(told[_FIELDS[2]])
        told[_FIELDS[2]] = base or (old if is_hub_name(old) else _last_part(old))
        write_json_atomic(unrolled, told)
        return str(told[_FIELDS[2]])
    config, info = folder / CONFIG_NAME, folder / INFO
    old = str(_read(config).get(_FIELDS[0]) or "") if config.is_file() else str(_read(info)[_FIELDS[1]] or "")
    new = base or (old if old == "" or is_hub_name(old) else _last_part(old))
    for path in folder.rglob("*.json"):
        content = _read(path)
        shared = _without_paths(content, old, new)
        if path == config and base is not None:
            shared[_FIELDS[0]], shared["revision"] = split_revision(base)
        if shared != content:  # otherwise the file stays, byte for byte
            write_json_atomic(path, shared)
    if info.is_file() and new != old:
        _rewrite_rows(folder / DATA, old, new)
    return new


def _without_paths(value: Any, old: str, new: str) -> Any:
    """JSON with `new` where it names `old` as a base, and the last part of every absolute path."""
    if isinstance(value, dict):
        return {
            name: new if name in _FIELDS and item == old else _without_paths(item, old, new)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_without_paths(item, old, new) for item in value]
    return _last_part(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _last_part(path: str) -> str:
    """`/home/me/models/tiny` is `./tiny`; of the demo's base, wherever it was installed, what tells it stays."""
    parts = Path(path).parts
    return "/".join((".", *(parts[-3:] if is_demo(path) else parts[-1:])))


def _rewrite_rows(path: Path, old: str, new: str) -> None:
    """Name the base `new` in a Parquet file of supervision rows, with one row group in memory at a time."""
    source = path.resolve()
    path.unlink()
    with pq.ParquetFile(source) as file, pq.ParquetWriter(path, file.schema_arrow) as writer:
        column = file.schema_arrow.get_field_index(_COLUMN)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            names = [new if name == old else _without_paths(name, old, new) for name in table[_COLUMN].to_pylist()]
            writer.write_table(table.set_column(column, table.field(column), pa.array(names, pa.string())))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DrLLMError(f"{path.name} must be JSON to be shared, but it is damaged; make it again.") from error
