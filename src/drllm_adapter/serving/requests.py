"""What a request may say about its path: read at its admission, where a mistake is its own and not the engine's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..decisions import REPEAT, Decisions, check, from_path, passes
from ..errors import DrLLMError
from .settings import KEY, Settings

PATH, DEPTH_CONTROL, LAYER_BUDGET = f"{KEY}_path", f"{KEY}_depth_control", f"{KEY}_layer_budget"
_KNOWN = (PATH, DEPTH_CONTROL, LAYER_BUDGET)


@dataclass(frozen=True)
class Asked:
    """What a request asks for: a path, or how the routers are to decide."""

    path: Decisions | None
    depth_control: float
    layer_budget: int | None


def read_request(arguments: Mapping[str, Any] | None, settings: Settings) -> Asked:
    """The arguments of a request, `SamplingParams.extra_args` or `vllm_xargs`.

    `drllm_path` is a list of decisions, or a text as `decisions.from_path` reads it; `drllm_depth_control` and
    `drllm_layer_budget` are in place of the adapter's own.

    Raises:
        DrLLMError: a name or a value is none of them, or the engine cannot run it.
    """
    arguments = arguments or {}
    for name in arguments:
        if str(name).startswith(KEY) and name not in _KNOWN:
            raise DrLLMError(f"a request may have {', '.join(_KNOWN)}, but {name} was given; correct it.")
    path = None
    if arguments.get(PATH) is not None:
        path = _path(arguments[PATH], settings)
    for name in (DEPTH_CONTROL, LAYER_BUDGET):
        if arguments.get(name) is not None and (path is not None or not settings.decides):
            other = "this one brings its path" if path is not None else "there are none here"
            raise DrLLMError(f"{name} tells routers how to decide, but {other}; leave out one of them.")
    depth_control, layer_budget = settings.depth_control, settings.layer_budget
    if arguments.get(DEPTH_CONTROL) is not None:
        depth_control = _depth_control(arguments[DEPTH_CONTROL])
    if arguments.get(LAYER_BUDGET) is not None:
        layer_budget = _layer_budget(arguments[LAYER_BUDGET], settings)
    if path is not None and layer_budget is not None and passes(path) > layer_budget:
        raise DrLLMError(
            f"the layer budget allows {layer_budget} block passes, but {PATH} makes {passes(path)}; shorten it."
        )
    return Asked(path, depth_control, layer_budget)


def refuse_beams(params: Any) -> None:
    """Refuse a step of vLLM's beam search: a request of its own, whose prompt has the generated tokens in it.

    Such steps come without the path that was asked for, and routers would read the tokens. They are known by what they
    ask for: one token with likelihoods and without its text.

    Raises:
        DrLLMError: as said.
    """
    if params.max_tokens == 1 and params.logprobs and not params.detokenize:
        raise DrLLMError(
            "vLLM's beam search must not be used with routed blocks, because its steps come without their request's "
            "path and with its answer in the prompt; sample, or generate greedily (one token with its "
            "logprobs alone: leave detokenize on)."
        )


def _path(value: Any, settings: Settings) -> Decisions:
    if isinstance(value, str):
        path = from_path(value, settings.num_blocks)
    elif isinstance(value, (list, tuple)):
        path = check(value, settings.num_blocks)
    else:
        raise DrLLMError(
            f"{PATH} must be a list of {settings.num_blocks} decisions or a text such as '0-9 12 12', but {value!r} "
            f"was given; correct it."
        )
    for block, decision in enumerate(path):
        if decision == REPEAT and block not in settings.repeatable:
            raise DrLLMError(
                f"{PATH} repeats block {block}, for whose second pass this engine keeps no pages; start it with "
                f"repeat_blocks that name it, or send another path."
            )
    return path


def _depth_control(value: Any) -> float:
    from ..adapter.config import check_depth_control

    return check_depth_control(value)


def _layer_budget(value: Any, settings: Settings) -> int | None:
    from ..adapter.config import check_layer_budget

    return check_layer_budget(value, settings.num_blocks, len(settings.routed))


def salt_of(asked: Asked, request_id: str) -> str:
    """What tells cached prefixes of one path from those of another; routers read whole prompts, and share none."""
    return "path " + "".join(map(str, asked.path)) if asked.path is not None else f"request {request_id}"
