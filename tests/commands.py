"""The commands in this process, which has imported what they need: a new one would take seconds to do so again."""

import sys
from pathlib import Path
from typing import Any

import pytest

from drllm_adapter.cli import main


def command(*arguments: Any, folder: Path | None = None) -> int:
    """Run `drllm` with these arguments, in a folder; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        if folder is not None:
            patch.chdir(folder)
        patch.setattr(sys, "argv", ["drllm", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert isinstance(stop.value.code, int)
    return stop.value.code
