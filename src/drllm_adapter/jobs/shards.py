"""Finished pieces of a job on disk: one file a piece, written once, whole, never changed; its name has its checksum."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from ..errors import DrLLMError
from ..files import replacing

DAMAGED = "damaged"

_NAME = re.compile(r"(\d{6,})\.([0-9a-f]{16})\.\w+")


class Shards:
    """The shards of a job.

    Args:
        folder: made when the first shard is written.
        suffix: of the files, such as ".parquet".
    """

    def __init__(self, folder: str | os.PathLike[str], suffix: str) -> None:
        self.folder = Path(folder)
        self.suffix = suffix

    def write(self, number: int, content: bytes) -> Path:
        """Put a finished piece on disk; its file.

        Raises:
            DrLLMError: the disk is full or the folder cannot be written.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{number:06d}.{_checksum(content)}{self.suffix}"
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        return path

    def finished(self) -> dict[int, Path]:
        """The file of every finished piece, by number."""
        try:
            names = sorted(os.listdir(self.folder), reverse=True)
        except FileNotFoundError:
            return {}
        matches = ((_NAME.fullmatch(name), name) for name in names)
        return {int(match[1]): self.folder / name for match, name in matches if match is not None}

    def read(self, path: Path) -> bytes | None:
        """The content of a shard; None when it is not what was written: the shard is then set aside in `damaged/`.

        Raises:
            DrLLMError: the same shard was damaged before, so that writing it once more would not help.
        """
        content = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        if match is not None and _checksum(content) == match[2]:
            return content
        aside = self.set_aside_as(path)
        if aside.exists() and path.exists():
            raise DrLLMError(
                f"{path} must hold what was written, but it is damaged again after it was made anew; check the disk, "
                f"remove {aside.parent} and go on with --resume."
            )
        aside.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another process was faster
            os.replace(path, aside)
        return None

    def set_aside_as(self, path: Path) -> Path:
        """Where `read` puts a damaged shard; no name that a reader of data sets would take for data."""
        return self.folder.parent / DAMAGED / f"{path.name}.damaged"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
