"""Four functions that steer and show the route, on a `PeftModel` and a plain transformers model alike."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..decisions import check
from ..errors import DrLLMError
from .config import DrLLMConfig, check_depth_control, check_layer_budget
from .layer import routed_layers


@contextmanager
def force_decisions(model: nn.Module, decisions: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Iterator[None]:
    """Run given decisions in place of the routers' for the prompts inside the `with` block.

    Args:
        model: a model with a router adapter.
        decisions: `[blocks]` for all rows or `[batch, blocks]`, of 0 (skip), 1 (execute), 2 (repeat).

    Raises:
        DrLLMError: wrong length, value or dtype; more passes than the layer budget; a cache filled along another route.
    """
    route = routed_layers(model)[0].route
    previous, route.forced = route.forced, _checked(decisions, route.num_blocks)
    try:
        yield
    finally:
        route.forced = previous


def last_decisions(model: nn.Module) -> Tensor:
    """The decisions of the last prompt, `[batch, blocks]` int8 on the CPU."""
    return routed_layers(model)[0].route.last()


def set_depth_control(model: nn.Module, p: float) -> None:
    """Set the paper's p of the active adapter, in [-1, 1]: -1 skips all, -0.5 is as trained, 0.5 executes, 1 repeats.

    The value becomes part of the adapter's configuration and is saved with it.
    """
    _active_config(model).depth_control = check_depth_control(p)


def set_layer_budget(model: nn.Module, n: int | None) -> None:
    """Guarantee that no row makes more than `n` block passes; None lifts the bound.

    The value becomes part of the adapter's configuration and is saved with it.
    """
    config = _active_config(model)
    num_blocks = routed_layers(model)[0].route.num_blocks
    config.layer_budget = check_layer_budget(n, num_blocks, len(config.routed_blocks(num_blocks)))


def _active_config(model: nn.Module) -> DrLLMConfig:
    config = routed_layers(model)[0].active_config
    if config is None:
        raise DrLLMError(
            "a router adapter must be active to be steered, but none is; enable it or choose it with set_adapter."
        )
    return config


def _checked(
    decisions: Tensor | Sequence[int] | Sequence[Sequence[int]], num_blocks: int
) -> tuple[int, ...] | list[list[int]]:
    """Those for all rows as a tuple, those of each row as a list."""
    try:
        tensor = torch.as_tensor(decisions)
    except (TypeError, ValueError) as error:
        raise DrLLMError(
            f"decisions must be [blocks] or [batch, blocks] whole numbers, but {type(decisions).__name__} could not "
            f"be read as such ({error}); pass a tensor or equally long lists."
        ) from error
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise DrLLMError(
            f"decisions must be whole numbers, but their dtype is {tensor.dtype}; convert them with .to(torch.int8)."
        )
    if tensor.ndim not in (1, 2) or tensor.numel() == 0:
        raise DrLLMError(
            f"decisions must be [blocks] or [batch, blocks], but their shape is {list(tensor.shape)}; reshape them."
        )
    rows = [list(check(row, num_blocks)) for row in tensor.reshape(-1, tensor.shape[-1]).tolist()]
    return tuple(rows[0]) if tensor.ndim == 1 else rows
