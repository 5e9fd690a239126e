"""What vLLM calls in each of its processes (entry point of `vllm.general_plugins`): routed architectures by name."""

from .settings import PREFIX, is_supported


def register() -> None:
    """Give every architecture of vLLM a routed one beside it, which is looked at when it is asked for.

    Another version is left alone, since this is called wherever both packages are installed; who asks for routed
    serving is told by `engine_arguments`.
    """
    import vllm

    if not is_supported(vllm.__version__):
        return
    for name in list(vllm.ModelRegistry.models):
        if not name.startswith(PREFIX):
            vllm.ModelRegistry.register_model(PREFIX + name, f"{__package__}.model:{PREFIX}{name}")
