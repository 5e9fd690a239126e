"""Routers that make a frozen language model skip, execute or repeat its own blocks, as a PEFT adapter (Dr.LLM).

`import drllm_adapter` registers the PEFT method `DRLLM`; after that PEFT's and transformers' own calls do the rest:
`get_peft_model(model, DrLLMConfig())`, `PeftModel.from_pretrained(base, "me/routers")`, `push_to_hub`.
"""

from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from .adapter.config import DrLLMConfig
    from .adapter.model import DrLLMModel
    from .adapter.steering import force_decisions, last_decisions, set_depth_control, set_layer_budget
    from .errors import DrLLMError

__version__ = "0.1.0"

__all__ = [
    "DrLLMConfig",
    "DrLLMError",
    "DrLLMModel",
    "force_decisions",
    "last_decisions",
    "set_depth_control",
    "set_layer_budget",
]

_HOMES = {
    "DrLLMConfig": "adapter.config",
    "DrLLMError": "errors",
    "DrLLMModel": "adapter.model",
    "force_decisions": "adapter.steering",
    "last_decisions": "adapter.steering",
    "set_depth_control": "adapter.steering",
    "set_layer_budget": "adapter.steering",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `drllm --help` and the pure-Python search need neither torch nor PEFT.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


@wrapt.when_imported("peft")
def _register(_peft: Any) -> None:
    # Runs at once when PEFT is loaded already, otherwise right after somebody (transformers included) imports it.
    from .adapter import cards
    from .adapter.registration import register

    cards.use(_CardWriter())
    register()


@wrapt.when_imported("transformers.integrations.peft")
def _load_whole(integration: Any) -> None:
    def load_whole(*call: Any) -> Any:
        from .adapter.registration import load_whole

        return load_whole(*call)

    for method in ("add_adapter", "load_adapter"):
        wrapt.wrap_function_wrapper(integration.PeftAdapterMixin, method, load_whole)


class _CardWriter:
    # What writes cards is loaded when the first one is written.

    @staticmethod
    def write_card(*args: Any, **kwargs: Any) -> object:
        from .hub import write_card

        return write_card(*args, **kwargs)

    @staticmethod
    def share_base(folder: Any) -> str:
        from .hub import share_base

        return share_base(folder)


@wrapt.when_imported("lm_eval.models.huggingface")
def _route_on_contexts(huggingface: Any) -> None:
    # lm-evaluation-harness scores continuations in one call with their context, which routers must not read.
    from .evaluation.lm_eval import install

    install(huggingface)
