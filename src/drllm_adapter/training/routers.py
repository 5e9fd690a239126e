"""The routers of all blocks as one stack of weights, so that one batched matrix product runs them all."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter.layer import routed_layers
from ..adapter.router import window_shares
from ..decisions import CLASS_NAMES
from ..errors import DrLLMError

Weights = dict[str, Tensor]
"""`down_weight` [R, h, d], `down_bias` [R, h], `up_weight` [R, 3, h], `up_bias` [R, 3]; R routers, float32."""


def fresh_weights(routers: int, width: int, router_width: int, generator: torch.Generator) -> Weights:
    """Xavier-uniform matrices and zero biases for `routers` routers that read `width` features."""
    down = torch.empty(routers, router_width, width)
    up = torch.empty(routers, len(CLASS_NAMES), router_width)
    # One matrix at a time: the stack as a whole would be taken for a convolution, with other fans.
    for matrix in (*down, *up):
        nn.init.xavier_uniform_(matrix, generator=generator)
    return {
        "down_weight": down,
        "down_bias": torch.zeros(routers, router_width),
        "up_weight": up,
        "up_bias": torch.zeros(routers, len(CLASS_NAMES)),
    }


def read_weights(model: nn.Module) -> tuple[Weights, tuple[int, ...]]:
    """The routers of the active adapter as a stack, a copy, and the block of each."""
    blocks = routed_layers(model)
    name = blocks[0].active_router_adapter
    assert name is not None
    layers = tuple(block.index for block in blocks if name in block.drllm_router)
    routers = [dict(blocks[layer].drllm_router[name].named_parameters()) for layer in layers]
    return {
        key.replace(".", "_"): torch.stack([router[key].detach().clone() for router in routers]) for key in routers[0]
    }, layers


@torch.no_grad()
def load_weights_into(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    layers: Sequence[int],
    adapter_name: str | None = None,
) -> None:
    """Copy trained weights into the routers of one adapter of the model; all of them or, on an error, none.

    Args:
        weights: the stack; its router i belongs to block `layers[i]`.
        layers: the blocks that have a router in the adapter, each once.
        adapter_name: None is the active adapter.

    Raises:
        DrLLMError: no such adapter, an adapter with routers for other blocks, or routers of another size.
    """
    blocks = routed_layers(model)
    name = blocks[0].active_router_adapter if adapter_name is None else adapter_name
    if name is None or name not in blocks[0].drllm_config:
        found = "none is active" if name is None else f"{name!r} is not one"
        raise DrLLMError(
            f"trained weights go into a router adapter of the model, but {found}; name one of its adapters, "
            f"{', '.join(blocks[0].drllm_config)}."
        )
    config = blocks[0].drllm_config[name]
    routed = config.routed_blocks(len(blocks))
    if sorted(layers) != routed:
        raise DrLLMError(
            f"trained weights must be for the blocks with a router in adapter {name!r}, {routed}, but they are for "
            f"{sorted(layers)}; train the blocks that layers_to_transform names."
        )
    for key in ("down_weight", "down_bias", "up_weight", "up_bias"):
        count = len(weights[key]) if key in weights else 0
        if count != len(layers):
            raise DrLLMError(
                f"trained weights must have {key} of {len(layers)} routers, one for each block of layers, but those of "
                f"{count} were given; pass the weights and the layers of one training."
            )
    copies = []
    for place, layer in enumerate(layers):
        for parameter, value in blocks[layer].drllm_router[name].named_parameters():
            trained = weights[parameter.replace(".", "_")][place]
            if trained.shape != value.shape:
                raise DrLLMError(
                    f"the router weight {parameter} of block {layer} must have shape {list(value.shape)}, but the "
                    f"trained one has {list(trained.shape)}; train with the adapter's router_width."
                )
            copies.append((value, trained))
    for value, trained in copies:
        value.copy_(trained)
    # The checksum of a loaded adapter was of the weights before; saving makes a new one.
    blocks[0].route.unverified.pop(name, None)
    config.checksum = None


def stacked_logits(weights: Mapping[str, Tensor], means: Tensor, windows: Tensor) -> Tensor:
    """The routers' logits: up(gelu_tanh(down(x))) of each window, averaged over the windows that are used.

    The average is taken before `up`, which is linear: the same number for an eighth of the work.

    Args:
        weights: the stack of R routers.
        means: float32 [R, B, K, d], window means; what unused windows hold does not matter as long as it is finite.
        windows: int64 [B], how many of the K windows are used, at least 1.

    Returns:
        float32 [B, R, 3].
    """
    routers, batch, count, width = (int(size) for size in means.shape)
    hidden = torch.baddbmm(
        weights["down_bias"].unsqueeze(1),
        means.reshape(routers, batch * count, width),
        weights["down_weight"].transpose(1, 2),
    )
    hidden = F.gelu(hidden, approximate="tanh").view(routers, batch, count, -1)
    pooled = torch.einsum("rbkh,bk->rbh", hidden, window_shares(windows, count))
    logits = torch.baddbmm(weights["up_bias"].unsqueeze(1), pooled, weights["up_weight"].transpose(1, 2))
    return logits.transpose(0, 1)
