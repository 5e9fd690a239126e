"""Routers come whole and go whole: an attach or a load that fails leaves the model as it was before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .card_on_push import CardOnPush
from .checked_loading import CheckedLoading
from .hooks import detach
from .layer import RoutedLayer, find_routed_layers
from .other_adapters import stop_standing_in, transformers_model


def remove_routers(model: nn.Module) -> None:
    """Give every block its place back and take away hooks, stand-ins and what is said of routers in the model."""
    for _, module in list(nn.Module.named_modules(model)):
        for name, child in module._modules.items():
            if isinstance(child, RoutedLayer):
                module._modules[name] = child.base_layer
    detach(transformers_model(model))
    stop_standing_in(model)
    CheckedLoading.remove(transformers_model(model))
    CardOnPush.remove(model)


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Undo what was attached to `model` inside the `with` block when the block ends in an error, whichever it is.

    Not by transformers' and PEFT's own calls, which ask for versions and for complete adapters, and so could raise.
    """
    inner: Any = transformers_model(model)
    layers = find_routed_layers(model)
    adapters = [(layer, layer.adapters()) for layer in layers]
    unverified = dict(layers[0].route.unverified) if layers else {}
    modules = [module for _, module in nn.Module.named_modules(model)]
    trainable = [(p, p.requires_grad) for module in modules for p in module._parameters.values() if p is not None]
    configs = {id(module): (held, dict(held)) for module in modules if (held := vars(module).get("peft_config"))}
    attributes = dict(vars(inner))  # such as transformers' note that an adapter has been loaded
    try:
        yield
    except BaseException:
        if not layers:
            remove_routers(model)
        for layer, before in adapters:
            layer.set_adapters(before)
        if layers:
            layers[0].route.unverified = unverified
        CheckedLoading.remove(inner)
        for parameter, required in trainable:
            parameter.requires_grad_(required)
        for module in modules:
            vars(module).pop("peft_config", None)
            if id(module) in configs:
                held, content = configs[id(module)]
                held.clear()
                dict.update(held, content)  # as it was; routers' configurations would look at each
                vars(module)["peft_config"] = held
        vars(inner).clear()
        vars(inner).update(attributes)
        raise
