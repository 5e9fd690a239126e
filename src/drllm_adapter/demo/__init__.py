"""A small trained model and its task, in which the prompt says how much depth the answer needs."""

import os
from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The model's folder: Llama class, loads with `AutoModelForCausalLM.from_pretrained`."""

_NAME = BASE.parts[-3:]


def is_demo(base: str | os.PathLike[str]) -> bool:
    """Whether a path is that folder's, wherever the package was installed when it was written down."""
    return Path(base).parts[-len(_NAME) :] == _NAME
