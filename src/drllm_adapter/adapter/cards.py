"""Who writes the card of an adapter that PEFT's own calls save or push.

Cards show evaluations and know the Hub; this folder knows neither. So `drllm_adapter` hands their writer in.
"""

import os
from pathlib import Path
from typing import Protocol


class CardWriter(Protocol):
    """What is asked of `hub` when an adapter is saved or pushed."""

    def write_card(
        self, folder: str | os.PathLike[str], *, repo_id: str | None = None, card: Path | None = None
    ) -> object: ...
    def share_base(self, folder: Path) -> str: ...


_writers: list[CardWriter] = []


def use(writer: CardWriter) -> None:
    """Let `writer` make all cards from now on."""
    _writers[:] = [writer]


def writer() -> CardWriter:
    return _writers[0]
