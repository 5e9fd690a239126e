"""Are these the router weights that were saved? Checks of loaded weights, whichever library loaded them."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import CONFIG_NAME
from safetensors.torch import load_file
from torch import Tensor

from ..errors import DrLLMError, refusing
from .config import DrLLMConfig
from .route import Route
from .weight_file import PICKLE, WEIGHTS, check_weight_file, differing, refuse_pickle, short_name


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the float32 bytes of router weights, named as in the adapter file without any prefix."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def router_weights(layers: Iterable[Any], adapter_name: str) -> dict[str, Tensor]:
    """The weights of an adapter's routers by `"<block>.<parameter>"`."""
    return {
        f"{layer.index}.{name}": parameter
        for layer in layers
        if adapter_name in layer.drllm_router
        for name, parameter in layer.drllm_router[adapter_name].named_parameters()
    }


def check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, Any], expected: str | None) -> None:
    """Refuse router weights that are missing, unknown, of another shape, not finite or not those that were saved.

    Args:
        weights, shapes: by `"<block>.<parameter>"`: those to check, and what there must be.
        expected: checksum as saved; None is not known.

    Raises:
        DrLLMError: with the first problem.
    """
    problem = differing({key: value.shape for key, value in weights.items()}, shapes)
    for key, value in weights.items():
        if problem is None and value.device.type == "meta":
            problem = f"{key} was not among them"
        elif problem is None and not (value.is_floating_point() and torch.isfinite(value).all()):
            problem = f"{key} holds values that are not finite numbers"
    if problem is not None:
        raise DrLLMError(
            f"the weight file of the adapter must hold exactly the weights of its routers, but {problem}; download or "
            f"save the adapter again."
        )
    if expected is not None and (found := checksum(weights)) != expected:
        raise DrLLMError(
            f"the router weights must have checksum {expected[:12]}, as adapter_config.json says, but the weight file "
            f"has {found[:12]}; download or save the adapter again."
        )


def check_loaded(route: Route, layers: Iterable[Any], adapter_name: str) -> None:
    """Check the routers in the model right after a library has loaded them.

    Raises:
        DrLLMError: they are not complete, or not those that were saved.
    """
    weights = router_weights(layers, adapter_name)
    shapes = {name: value.shape for name, value in weights.items()}
    check_weights(weights, shapes, route.unverified.get(adapter_name))
    route.unverified.pop(adapter_name, None)


def verify_once(route: Route, layers: Any) -> None:
    """Check the active adapter the first time it is used, where nothing has been loaded into it.

    The configuration of a saved adapter alone, for inference, gives routers without weights.

    Raises:
        DrLLMError: the weights are not those that were saved.
    """
    name = layers[0].active_router_adapter
    if name is None:
        return
    if name not in route.unverified:
        # What accelerate has offloaded it brings when it is used.
        check_complete([layer for layer in layers[:1] if not _is_offloaded(layer, name)], [name])
    elif not layers[0].drllm_config[name].inference_mode:
        del route.unverified[name]  # fresh routers with the settings of another adapter, to be trained
    else:
        check_loaded(route, layers, name)


def _is_offloaded(layer: Any, name: str) -> bool:
    return name in layer.drllm_router and hasattr(layer.drllm_router[name].up, "_hf_hook")


def check_complete(layers: Iterable[Any], names: Iterable[str]) -> None:
    """Refuse to run or to save routers that have no weights.

    Raises:
        DrLLMError: an adapter of these names has routers on the meta device.
    """
    for name in names:
        for layer in layers:
            if name in layer.drllm_router and layer.drllm_router[name].up.weight.device.type == "meta":
                raise DrLLMError(
                    f"the routers of {name!r} must have weights, but they were made from a saved adapter's "
                    f"configuration alone or by low_cpu_mem_usage=True; load weights into them, by "
                    f"set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True) for one, or attach new ones "
                    f"with DrLLMConfig(...)."
                )


def read_adapter_config(folder: str | os.PathLike[str], name: str | None = None) -> DrLLMConfig:
    """The configuration of the adapter in a folder; `name` is what messages call it.

    Raises:
        DrLLMError: there is none, or it is damaged or of another PEFT method.
    """
    name = name or os.fspath(folder)
    if not (Path(folder) / CONFIG_NAME).is_file():
        raise DrLLMError(
            f"{name!r} must be an adapter, but it has no {CONFIG_NAME}; correct the name or save it again."
        )
    # PEFT lets through whatever a foreign or damaged file makes of itself
    with refusing(
        f"the adapter {name!r} must have a readable {CONFIG_NAME}, but reading it failed",
        "download or save the adapter again",
        with_kind=True,
    ):
        config = PeftConfig.from_pretrained(os.fspath(folder))
    if not isinstance(config, DrLLMConfig):
        raise DrLLMError(
            f"the adapter {name!r} must be a DRLLM adapter, but it is of type {config.peft_type}; load it with PEFT."
        )
    return config


def check_adapter_folder(folder: str | os.PathLike[str], name: str | None = None) -> DrLLMConfig:
    """The configuration of the adapter in a folder, after everything that can be checked without its base.

    Raises:
        DrLLMError: see `read_adapter_config`; or its weights are missing, damaged or not those that its configuration
            describes.
    """
    folder = Path(folder)
    config = read_adapter_config(folder, name)
    path = folder / WEIGHTS
    if not os.path.lexists(path):
        if (folder / PICKLE).exists():
            raise refuse_pickle(name or str(folder))
        raise DrLLMError(
            f"the adapter {name or str(folder)!r} must have its weights in {WEIGHTS}, but there is no such file; "
            f"download or save it again."
        )
    shapes = config.weight_shapes()
    check_weight_file(path, shapes)
    weights = {short_name(key): value for key, value in load_file(path).items()}
    check_weights(weights, shapes or {key: value.shape for key, value in weights.items()}, config.checksum)
    return config
