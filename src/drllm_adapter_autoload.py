"""What `import torch` calls in every environment that has drllm-adapter: an entry point of its group `torch.backends`.

PEFT looks for no methods in what is installed, so programs that never import drllm_adapter (`lm_eval`, a server) would
not know router adapters. torch is the one library below all of them that looks, for device backends. A module of its
own, because to look at PEFT comes before drllm_adapter is imported. TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns it off.
"""

import sys


def wait_for_peft() -> None:
    """Register the method as soon as PEFT is imported, which costs nothing until then.

    Where PEFT is what imports torch, it is half made: then nothing is done, and `import drllm_adapter` is needed.
    """
    if "peft" not in sys.modules:
        import drllm_adapter  # noqa: F401 - sets the hooks
