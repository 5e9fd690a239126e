"""What vLLM calls in each of its processes (entry point of `vllm.general_plugins`): routed architectures by name."""

from .settings import PREFIX


def register() -> None:
    """Give every architecture of vLLM a routed one beside it, which is looked at when it is asked for."""
    from vllm import ModelRegistry

    for name in list(ModelRegistry.models):
        if not name.startswith(PREFIX):
            ModelRegistry.register_model(PREFIX + name, f"{__package__}.model:{PREFIX}{name}")
