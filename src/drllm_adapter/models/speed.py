"""What is faster on this CPU: which dtype, and one thread or all of them. One block is timed, for about a second."""

import copy
import os
import time
from typing import Any

import torch
from torch import nn

from ..adapter.stack import find_stack

_ROWS, _TOKENS = 8, 32
_SECONDS = 0.8
_WORTH_IT = 1.25
"""All threads must be so much faster than one: they take as many cores from others, and small work only waits."""
# What people and launchers set; what they set is left.
_SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

Option = tuple[torch.dtype, int]


@torch.no_grad()
def use_the_faster(model: Any, *, any_dtype: bool) -> None:
    """Give the model the dtype, and PyTorch the number of threads, with which a block of it runs faster here.

    Sums do not depend on the number of threads beyond their last bits, see docs/search.md.

    Args:
        model: on the CPU, in evaluation mode.
        any_dtype: whether weights in half precision may become float32; threads are chosen unless they were set by
            OMP_NUM_THREADS, as `--threads` and launchers do.
    """
    dtypes = {model.dtype, torch.float32} if any_dtype else {model.dtype}
    default = torch.get_num_threads()
    threads = {default} if any(map(os.environ.get, _SET_BY_USER)) else {default, 1}
    options = [(dtype, number) for dtype in dtypes for number in threads]
    if len(options) == 1:
        return
    dtype, number = choose(_seconds(model, options))
    torch.set_num_threads(number)
    if dtype != model.dtype:
        own = model.dtype
        # Weights alone: what a model keeps in float32, such as the frequencies of its rotary embedding, stays so.
        for weight in model.parameters():
            if weight.dtype == own:
                weight.data = weight.data.to(dtype)


def choose(seconds: dict[Option, float]) -> Option:
    """The fastest; one thread unless more are clearly faster."""
    dtype, number = min(seconds, key=lambda option: seconds[option])
    if seconds.get((dtype, 1), float("inf")) < _WORTH_IT * seconds[dtype, number]:
        number = 1
    return dtype, number


def _seconds(model: Any, options: list[Option]) -> dict[Option, float]:
    """The least time that a block took, by option; they take turns, since other programs come and go."""
    block, arguments, named = _first_call(model)
    blocks = {dtype: copy.deepcopy(block).to(dtype) for dtype, _ in options}
    default, least, began = torch.get_num_threads(), dict.fromkeys(options, float("inf")), time.perf_counter()
    try:
        for turn in range(4):
            for dtype, number in options:
                torch.set_num_threads(number)
                given, by_name = _cast(arguments, model.dtype, dtype), _cast(named, model.dtype, dtype)
                start = time.perf_counter()
                blocks[dtype](*given, **by_name)
                least[dtype, number] = min(least[dtype, number], time.perf_counter() - start)
            # The first turn also pays for what kernels set up.
            if turn and time.perf_counter() - began > _SECONDS:
                break
    finally:
        torch.set_num_threads(default)
    return least


class _Reached(Exception):
    pass


def _first_call(model: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The first block, and what the model calls it with for a short batch; nothing behind it runs."""
    block = find_stack(model).blocks[0]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((arguments, named))
        raise _Reached

    hook = block.register_forward_pre_hook(note, with_kwargs=True)
    try:
        model(torch.ones(_ROWS, _TOKENS, dtype=torch.long), use_cache=False)
    except _Reached:
        pass
    finally:
        hook.remove()
    return block, *calls[0]


def _cast(value: Any, own: torch.dtype, dtype: torch.dtype) -> Any:
    """Tensors of the model's own dtype in another one, inside tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.dtype == own else value
    if isinstance(value, tuple):
        return tuple(_cast(item, own, dtype) for item in value)
    if isinstance(value, dict):
        return {name: _cast(item, own, dtype) for name, item in value.items()}
    return value
