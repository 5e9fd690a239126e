"""The `drllm` command: arguments in, calls out. Nothing here is needed to use adapters from Python."""

from .commands import main

__all__ = ["main"]
