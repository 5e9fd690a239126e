"""The scores of the bundles in flight on disk, round by round: what a search that is cut has paid for is not lost.

A search proposes by what it was told and by nothing else, so the next run is told the same again, without the model.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from ..files import writing


@dataclass(frozen=True)
class Told:
    """What a search was told of a path, see `ScoreOfPath`."""

    probability: float
    correct: bool
    agreement: float | None = None
    kl: float | None = None


class Journal:
    """The rounds of one bundle: a line each, its checksum before it; what follows a damaged line does not count.

    Args:
        path: of the file; made with its folder when the first round is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.replayed = 0  # scores that came from an earlier run

    def rounds(self) -> Iterator[list[Told]]:
        """The rounds of an earlier run; the file ends with the last of them afterwards."""
        whole = 0
        if self.path.exists():
            with open(self.path, "rb") as file:
                for line in file:
                    checksum, _, content = line.partition(b" ")
                    if checksum != _checksum(content) or not line.endswith(b"\n"):
                        break
                    whole += len(line)
                    told = [Told(*fields) for fields in json.loads(content)]
                    self.replayed += len(told)
                    yield told
            with writing(self.path):
                os.truncate(self.path, whole)

    def write(self, told: Sequence[Told]) -> None:
        """Add a round.

        Raises:
            DrLLMError: the disk is full or the folder cannot be written.
        """
        content = json.dumps([astuple(item) for item in told]).encode() + b"\n"
        with writing(self.path):
            self.path.parent.mkdir(exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(_checksum(content) + b" " + content)

    def remove(self) -> None:
        """The bundle is finished."""
        self.path.unlink(missing_ok=True)


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)
