"""The `drllm` command: arguments in, calls out. Nothing here is needed to use adapters from Python."""

from .app import main

__all__ = ["main"]
