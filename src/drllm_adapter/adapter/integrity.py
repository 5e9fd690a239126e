"""Are these the router weights that were saved? Checks of loaded weights, whichever library loaded them."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DrLLMError
from .route import Route


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the float32 bytes of router weights, named as in the adapter file without any prefix."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def router_weights(route: Route, adapter_name: str) -> dict[str, Tensor]:
    """The weights of an adapter's routers by `"<block>.<parameter>"`."""
    return {
        f"{layer.index}.{name}": parameter
        for layer in route.layers
        if adapter_name in layer.drllm_router
        for name, parameter in layer.drllm_router[adapter_name].named_parameters()
    }


def verify_once(route: Route) -> None:
    """Check the active adapter's weights against the checksum it was saved with, the first time it is used.

    transformers' own adapter loader keeps fresh routers, without an error, when a file's key names are not those it
    expects; fresh routers are the identity, so nothing else would show it.

    Raises:
        DrLLMError: the weights are not those that were saved.
    """
    name = route.layers[0].active_router_adapter
    if name is None or name not in route.unverified:
        return
    expected = route.unverified.pop(name)
    if not route.layers[0].drllm_config[name].inference_mode:
        return  # to be trained, perhaps from new routers with these settings
    found = checksum(router_weights(route, name))
    if found != expected:
        route.unverified[name] = expected
        raise DrLLMError(
            f"the router weights of adapter {name!r} must have checksum {expected[:12]}, as its adapter_config.json "
            f"says, but those in the model have {found[:12]}: the weight file is damaged or was not read completely; "
            f"download or save the adapter again."
        )
