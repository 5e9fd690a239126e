"""Routers that make a frozen language model skip, execute or repeat its own blocks, as a PEFT adapter (Dr.LLM).

`import drllm_adapter` registers the PEFT method `DRLLM`; after that PEFT's and transformers' own calls do the rest:
`get_peft_model(model, DrLLMConfig())`, `PeftModel.from_pretrained(base, "me/routers")`, `push_to_hub`.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from .adapter.config import DrLLMConfig
    from .adapter.model import DrLLMModel
    from .adapter.speculation import Speculation, last_speculation, speculate
    from .adapter.steering import force_decisions, last_decisions, set_depth_control, set_layer_budget
    from .errors import DrLLMError

__version__ = "0.1.0"

__all__ = [
    "DrLLMConfig",
    "DrLLMError",
    "DrLLMModel",
    "Speculation",
    "force_decisions",
    "last_decisions",
    "last_speculation",
    "set_depth_control",
    "set_layer_budget",
    "speculate",
]

_HOMES = {
    "DrLLMConfig": "adapter.config",
    "DrLLMError": "errors",
    "DrLLMModel": "adapter.model",
    "Speculation": "adapter.speculation",
    "force_decisions": "adapter.steering",
    "last_decisions": "adapter.steering",
    "last_speculation": "adapter.speculation",
    "set_depth_control": "adapter.steering",
    "set_layer_budget": "adapter.steering",
    "speculate": "adapter.speculation",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `drllm --help` and the pure-Python search need neither torch nor PEFT.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _quietly(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """`hook` as one that cannot break the import of another library, where programs may do without this one."""

    def run(module: Any) -> None:
        try:
            hook(module)
        except Exception as error:
            logging.getLogger(__name__).warning("Router adapters are not available: %r", error)

    return run


@wrapt.when_imported("peft")
@_quietly
def _register(_peft: Any) -> None:
    # Runs at once when PEFT is loaded already, otherwise right after somebody (transformers included) imports it.
    from .adapter import after_saving
    from .adapter.registration import register

    after_saving.use(f"{__name__}.hub")
    register()


@wrapt.when_imported("transformers.integrations.peft")
@_quietly
def _load_whole(integration: Any) -> None:
    def load_whole(*call: Any) -> Any:
        from .adapter.registration import load_whole

        return load_whole(*call)

    for method in ("add_adapter", "load_adapter"):
        wrapt.wrap_function_wrapper(integration.PeftAdapterMixin, method, load_whole)


@wrapt.when_imported("lm_eval.models.huggingface")
@_quietly
def _route_on_contexts(huggingface: Any) -> None:
    # lm-evaluation-harness scores continuations in one call with their context, which routers must not read.
    from .evaluation.lm_eval import install

    install(huggingface)
