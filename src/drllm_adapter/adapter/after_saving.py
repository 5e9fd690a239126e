"""Who writes the card of an adapter that PEFT's own calls save or push.

Cards show evaluations and know the Hub; this folder knows neither, so `drllm_adapter` names the writer.
"""

from importlib import import_module
from typing import Any

_WRITERS: list[str] = []


def use(module: str) -> None:
    """Let that module's `write_card` and `share_base` make all cards; it is loaded for the first one."""
    _WRITERS[:] = [module]


def writer() -> Any:
    return import_module(_WRITERS[0])
