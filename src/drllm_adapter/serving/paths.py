"""Which path was taken: asked of the engine, offline."""

from collections.abc import Sequence
from typing import Any

from ..decisions import Decisions
from ..errors import DrLLMError


def paths_of(llm: Any, outputs: Sequence[Any]) -> list[Decisions]:
    """The decisions of requests that a `vllm.LLM` has answered, one for each of its outputs.

    Args:
        llm: made with `engine_arguments`.
        outputs: what `llm.generate` or `llm.chat` returned; the last 10 000 requests are remembered.

    Raises:
        DrLLMError: a request is not remembered any more.
    """
    names = [str(output.request_id) for output in outputs]
    found: dict[str, list[list[int]]] = llm.collective_rpc("drllm_paths", args=(names,))[0]
    missing = [name for name in names if name not in found]
    if missing:
        raise DrLLMError(
            f"the path of a request must be asked for soon after its answer, but the engine knows none of "
            f"{missing[0]!r}."
        )
    # Sequences of one prompt take one path.
    return [tuple(found[name][0]) for name in names]
