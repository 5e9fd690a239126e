"""Adapters and supervision sets by name: a folder here, or a repository on the Hub."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..demo import BASE as DEMO_BASE
from ..demo import is_demo
from ..errors import DrLLMError, refusing
from ..files import MARKER
from ..supervision.rows import INFO
from .hub_errors import explained

ADAPTER = "adapter"
"""The kind of an adapter's folder, in its marker."""
CHECKPOINT = "checkpoint"
"""The kind of the folder of an unrolled base."""
TRAINING_REPORT = "training.json"
# PEFT's names, without loading PEFT: a wrong name is refused at once.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, TRAINING_REPORT, "adapter_model.safetensors")
SUPERVISION_FILES = ("*.parquet", MARKER, INFO)

_SECONDS_TO_ANSWER = 10.0
_MODEL_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FILES = (".json", ".jsonl", ".safetensors", ".bin", ".gguf", ".parquet", ".yaml")
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<subfolder>[^@]+?))?/?(?:@(?P<revision>[^@\s]+))?")


@dataclass(frozen=True)
class HubName:
    """A place on the Hub, written `owner/name`, `owner/name/folder`, `owner/name@branch` or `owner/name@refs/pr/1`."""

    repo: str
    subfolder: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Take such a name apart.

        Raises:
            DrLLMError: it is not one.
        """
        match = _NAME.fullmatch(text)
        if match is None or ".." in text:
            raise DrLLMError(
                f"{text!r} must be a folder or a name on the Hub (owner/name, owner/name@branch), but there is no such "
                f"folder and it is no such name; correct it."
            )
        return cls(**match.groupdict())


def is_hub_name(base: str) -> bool:
    """Whether a model's name can be one on the Hub, and no folder's."""
    return base != "" and base[0] != "." and not Path(base).is_absolute() and not Path(base).is_dir()


def check_model_name(name: str) -> None:
    """Refuse what is neither a model's folder, nor in the cache, nor on the Hub.

    The Hub is asked once, and only where the name can be one of its: libraries that load a model ask it for file after
    file, again and again, when it does not answer.

    Raises:
        DrLLMError: as said.
    """
    where, _ = split_revision(name)
    if Path(where).is_dir():
        if (Path(where) / "config.json").is_file():
            return
        other = " but an adapter's" if (Path(where) / ADAPTER_CONFIG).is_file() else ""
        raise DrLLMError(
            f"the base model {name!r} must be a folder with a model, but {where} has no config.json and is none"
            f"{other}; correct the name."
        )
    if _MODEL_NAME.fullmatch(where) is None or ".." in where or Path(where).suffix in _FILES:
        found = "it is a file" if Path(where).is_file() else "there is no such folder and it is no such name"
        raise DrLLMError(
            f"the base model {name!r} must be a folder or a name on the Hub (owner/name, owner/name@branch), but "
            f"{found}; correct it."
        )
    _ask_for_model(name)


@cache
def _ask_for_model(name: str) -> None:
    from huggingface_hub import HfApi, try_to_load_from_cache

    where, revision = split_revision(name)
    if isinstance(try_to_load_from_cache(where, "config.json", revision=revision), str):
        return
    with explained(f"the base model {name!r}, which is no folder here,", "downloaded"):
        HfApi().model_info(where, revision=revision, timeout=_SECONDS_TO_ANSWER)


def find_base(source: str | os.PathLike[str], base: str) -> str:
    """The base that an adapter or a supervision set names, where it can be loaded from here.

    What came from the Hub may name a base on the Hub, but no folder here: that is not for its author to choose.

    Args:
        source: folder, file or Hub name of what names it.

    Raises:
        DrLLMError: `base` is a folder that is not here, or that `source`, on the Hub, may not choose.
    """
    if is_demo(base):
        return str(DEMO_BASE)
    place = Path(base).expanduser()
    is_path = base.startswith(".") or place.is_absolute() or ".." in place.parts
    if not Path(source).exists() and (is_path or place.exists()):
        raise DrLLMError(
            f"{os.fspath(source)!r} from the Hub must name a base model on the Hub, but it names the folder {base!r} "
            f"of the machine it was made on; say with --base where your copy of that model is."
        )
    if is_path and not place.is_dir():
        raise DrLLMError(
            f"{os.fspath(source)!r} names the folder {base!r} as its base model, but there is no such folder here; say "
            f"with --base where your copy of that model is."
        )
    return base


def base_of(adapter: str, config: Any) -> str:
    """The base that an adapter's configuration names, with its revision.

    Raises:
        DrLLMError: it names none, or see `find_base`.
    """
    if not config.base_model_name_or_path:
        raise DrLLMError(f"the adapter {adapter!r} does not say which base model it fits; name it with --base.")
    name = find_base(adapter, config.base_model_name_or_path)
    return f"{name}@{config.revision}" if config.revision and "@" not in name else name


def split_revision(name: str) -> tuple[str, str | None]:
    """The name of a model and the revision behind its @; a folder has none."""
    where, mark, revision = name.rpartition("@")
    return (where, revision) if mark and where and not Path(name).exists() else (name, None)


def fetch(
    name: str | os.PathLike[str], kind: str, files: Sequence[str], *, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """The folder or file `name` itself, or the cached copy of a repository's files, all of one commit.

    Args:
        name: a path, or see `HubName`.
        kind: "model" or "dataset".
        files: what is needed, with wildcards.
        cache_dir: None is the cache of the Hub's libraries.

    Raises:
        DrLLMError: there is no such folder and no such repository, or it cannot be downloaded.
    """
    if Path(name).exists():
        return Path(name)
    if os.path.lexists(name):
        raise DrLLMError(f"{os.fspath(name)!r} must be a folder, but it is a link to nothing; correct the name.")
    place = HubName.parse(os.fspath(name))
    prefix = f"{place.subfolder}/" if place.subfolder else ""
    from huggingface_hub import snapshot_download

    with explained(os.fspath(name), "downloaded"):
        folder = snapshot_download(
            place.repo,
            repo_type=kind,
            revision=place.revision,
            allow_patterns=[prefix + pattern for pattern in files],
            cache_dir=None if cache_dir is None else Path(cache_dir),
        )
    return Path(folder) / (place.subfolder or "")


def fetch_adapter(
    name: str | os.PathLike[str], *, weights: bool = True, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """The folder of an adapter; see `fetch`. Without `weights` they are not downloaded."""
    return fetch(name, "model", ADAPTER_FILES if weights else ADAPTER_FILES[:-1], cache_dir=cache_dir)


def is_adapter(name: str | os.PathLike[str]) -> bool:
    """Whether a folder or a repository on the Hub holds an adapter, and no base model.

    Raises:
        DrLLMError: there is no such folder and no such repository, or it cannot be reached.
    """
    return (fetch_adapter(name, weights=False) / ADAPTER_CONFIG).is_file()


def names_adapter(name: str, *, unreachable: bool) -> bool:
    """As `is_adapter`, but `unreachable` where that cannot be found out: loading it will say what is wrong."""
    if Path(name).is_dir():
        return (Path(name) / ADAPTER_CONFIG).is_file()
    from transformers.utils.peft_utils import find_adapter_config_file

    where, revision = split_revision(name)
    try:
        return find_adapter_config_file(where, revision=revision) is not None
    except OSError:
        return unreachable


def fetch_supervision(name: str | os.PathLike[str]) -> Path:
    """The folder or Parquet file of a supervision set; see `fetch`."""
    return fetch(name, "dataset", SUPERVISION_FILES)


def load_training_record(adapter: str | os.PathLike[str]) -> dict[str, Any]:
    """How the adapter in a folder or on the Hub was trained, as `drllm train` wrote it down; {} where it did not.

    Raises:
        DrLLMError: there is no adapter, or the record is damaged.
    """
    folder = fetch_adapter(adapter, weights=False)
    with refusing(
        f"{folder / TRAINING_REPORT} must be the record of a training, but reading it failed",
        "train the adapter again, or remove the file",
        (OSError, ValueError, AttributeError),
    ):
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        # Where older adapters have it.
        record = config.get("training") or {}
        if (folder / TRAINING_REPORT).is_file():
            found = json.loads((folder / TRAINING_REPORT).read_text(encoding="utf-8"))
            # Whoever trains the routers further by other means leaves the record of older weights behind.
            if found.get("adapter_checksum") in (None, config.get("checksum")):
                record = found
        if not isinstance(record, dict):
            raise ValueError("it is no object")
    return record
