"""What `import torch` calls in every environment that has drllm-adapter: an entry point of its group `torch.backends`.

PEFT looks for no methods in what is installed, so programs that never import drllm_adapter (`lm_eval`, a server) would
not know router adapters. torch is the one library below all of them that looks, for device backends. A module of its
own, because to look at PEFT comes before drllm_adapter is imported. TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns it off.
"""

import logging
import sys
from importlib.machinery import ModuleSpec
from typing import Any


def wait_for_peft() -> None:
    """Register the method as soon as PEFT is imported, which costs nothing until then; never raises."""
    peft = sys.modules.get("peft")
    if getattr(getattr(peft, "__spec__", None), "_initializing", False):
        peft.__spec__.__class__ = _Awaited  # type: ignore[union-attr]
    else:
        _load()


class _Awaited(ModuleSpec):
    """The spec of PEFT where PEFT is what imports torch, so that it is half made when torch calls.

    Import hooks come too late for a module that is being imported. When it is whole, the import system says so here.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            _load()


def _load() -> None:
    try:
        import drllm_adapter  # noqa: F401 - sets the hooks
    except Exception as error:  # whatever is wrong with this package must not reach programs that do without it
        logging.getLogger("drllm_adapter").warning("Router adapters are not available: %r", error)
