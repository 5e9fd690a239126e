"""Requests are looked at when they are admitted: an exception there is an answer, later it would end the engine.

vLLM offers this to its logits processors alone (`validate_params`), which it knows by name: so the name carries what
requests are checked against. They change no logits.
"""

import re
from typing import Any

from ..errors import DrLLMError
from .requests import read_request, refuse_beams
from .settings import Settings

_NAME = re.compile(
    r"(?P<runner>V1|V2)Blocks(?P<blocks>\d+)Repeat(?P<repeat>[0-9a-f]+)Routed(?P<routed>[0-9a-f]+)Budget(?P<budget>\d*)"
)


def name_of(settings: Settings, *, v2: bool) -> str:
    """The name by which vLLM is given the class that checks requests against these settings."""
    repeat, routed = (sum(1 << block for block in blocks) for blocks in (settings.repeatable, settings.routed))
    runner = "V2" if v2 else "V1"
    budget = "" if settings.layer_budget is None else settings.layer_budget
    return f"{__name__}:{runner}Blocks{settings.num_blocks}Repeat{repeat:x}Routed{routed:x}Budget{budget}"


def __getattr__(name: str) -> Any:
    settings = settings_of(name)
    if settings is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _v2(name, settings) if name.startswith("V2") else _v1(name, settings)


def settings_of(name: str) -> Settings | None:
    """What requests are checked against, from the name of the class; None where it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    blocks = int(found["blocks"])
    repeat, routed = (
        tuple(block for block in range(blocks) if int(found[key], 16) >> block & 1) for key in ("repeat", "routed")
    )
    return Settings(
        num_blocks=blocks,
        adapter="" if routed else None,
        routed=routed,
        repeatable=repeat,
        layer_budget=int(found["budget"]) if found["budget"] else None,
    )


def _check(settings: Settings, params: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    try:
        refuse_beams(params)
        read_request(params.extra_args, settings)
    except DrLLMError as error:
        raise VLLMValidationError(str(error)) from None


def _v1(name: str, settings: Settings) -> type:
    from vllm.v1.sample.logits_processor import LogitsProcessor

    class Admission(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            pass

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            _check(settings, sampling_params)

        def apply(self, logits: Any) -> Any:
            return logits

        def is_argmax_invariant(self) -> bool:
            return True

        def update_state(self, batch_update: Any) -> None:
            pass

    Admission.__name__ = Admission.__qualname__ = name
    return Admission


def _v2(name: str, settings: Settings) -> type:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

    class Admission(LogitsProcessor):
        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            _check(settings, sampling_params)

        def add_request(self, req_idx: int, sampling_params: Any) -> bool:
            return False

        def apply(self, logits: Any, ctx: Any) -> Any:
            return logits

    Admission.__name__ = Admission.__qualname__ = name
    return Admission
