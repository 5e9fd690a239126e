"""The routers of all blocks as one stack of weights, so that one batched matrix product runs them all."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter.layer import routed_layers
from ..decisions import CLASS_NAMES
from ..errors import DrLLMError

Weights = dict[str, Tensor]
"""`down_weight` [R, h, d], `down_bias` [R, h], `up_weight` [R, 3, h], `up_bias` [R, 3]; R routers, float32."""


def fresh_weights(routers: int, width: int, hidden: int, generator: torch.Generator) -> Weights:
    """Xavier-uniform matrices and zero biases for `routers` routers that read `width` features."""
    down = torch.empty(routers, hidden, width)
    up = torch.empty(routers, len(CLASS_NAMES), hidden)
    # One matrix at a time: the stack as a whole would be taken for a convolution, with other fans.
    for matrix in (*down, *up):
        nn.init.xavier_uniform_(matrix, generator=generator)
    return {
        "down_weight": down,
        "down_bias": torch.zeros(routers, hidden),
        "up_weight": up,
        "up_bias": torch.zeros(routers, len(CLASS_NAMES)),
    }


@torch.no_grad()
def load_weights_into(model: nn.Module, weights: Weights, layers: Sequence[int]) -> None:
    """Copy trained weights into the routers of the model's active adapter.

    Args:
        weights: the stack; its router i belongs to block `layers[i]`.

    Raises:
        DrLLMError: the adapter has no router for one of the blocks, or routers of another size.
    """
    blocks = routed_layers(model)
    name = blocks[0].active_router_adapter
    for place, layer in enumerate(layers):
        routers = blocks[layer].drllm_router if layer < len(blocks) else {}
        if name is None or name not in routers:
            raise DrLLMError(
                f"trained weights must belong to blocks with a router, but block {layer} has none in the active "
                f"adapter; train the blocks that layers_to_transform names."
            )
        for parameter, value in routers[name].named_parameters():
            trained = weights[parameter.replace(".", "_")][place]
            if trained.shape != value.shape:
                raise DrLLMError(
                    f"the router weight {parameter} of block {layer} must have shape {list(value.shape)}, but the "
                    f"trained one has {list(trained.shape)}; train with the adapter's router_width."
                )
            value.copy_(trained)


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
    routers, batch, count, width = means.shape
    hidden = torch.baddbmm(
        weights["down_bias"].unsqueeze(1),
        means.reshape(routers, batch * count, width),
        weights["down_weight"].transpose(1, 2),
    )
    hidden = F.gelu(hidden, approximate="tanh").view(routers, batch, count, -1)
    used = torch.arange(count, device=windows.device) < windows.unsqueeze(1)
    shares = used.to(hidden.dtype) / windows.unsqueeze(1)
    pooled = torch.einsum("rbkh,bk->rbh", hidden, shares)
    logits = torch.baddbmm(weights["up_bias"].unsqueeze(1), pooled, weights["up_weight"].transpose(1, 2))
    return logits.transpose(0, 1)
