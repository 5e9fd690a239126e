"""Adapters and supervision sets by name: a folder here, or a repository on the Hub."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from peft.utils import CONFIG_NAME

from ..adapter.weight_file import WEIGHTS
from ..errors import DrLLMError
from ..files import MARKER
from ..supervision.rows import INFO
from .hub_errors import explained

ADAPTER = "adapter"
"""The kind of an adapter's folder, in its marker."""
TRAINING_REPORT = "training.json"
ADAPTER_FILES = (CONFIG_NAME, TRAINING_REPORT, WEIGHTS)
SUPERVISION_FILES = ("*.parquet", MARKER, INFO)

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


def fetch_supervision(name: str | os.PathLike[str]) -> Path:
    """The folder or Parquet file of a supervision set; see `fetch`."""
    return fetch(name, "dataset", SUPERVISION_FILES)
