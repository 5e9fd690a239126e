"""Checks around the weight loading of transformers' own `load_adapter`, which tells the tuner nothing."""

from typing import Any

from .config import DrLLMConfig
from .integrity import check_loaded
from .layer import find_routed_layers
from .route import Route
from .weight_file import check_weight_file, refuse_pickle


class CheckedLoading:
    """Stands in for the model's `_load_pretrained_model` for one call: the one that loads a router adapter.

    transformers injects the adapter, then loads its files through this method of the model, and has no other place to
    look at the files before, and at what became of them after: keys that it does not expect it only reports in its log.
    """

    def __init__(self, model: Any, route: Route, adapter_name: str, config: DrLLMConfig) -> None:
        self.model, self.route, self.adapter_name, self.config = model, route, adapter_name, config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.remove(self.model)
        if not any(f".drllm_router.{self.adapter_name}." in key for key in kwargs.get("expected_keys") or ()):
            return self.model._load_pretrained_model(*args, **kwargs)  # of another adapter
        for path in kwargs.get("checkpoint_files") or ():
            if not str(path).endswith(".safetensors"):
                raise refuse_pickle(str(path))
            check_weight_file(path, self.config.weight_shapes())
        loaded = self.model._load_pretrained_model(*args, **kwargs)
        check_loaded(self.route, find_routed_layers(self.model), self.adapter_name)
        return loaded

    def attach(self) -> None:
        if hasattr(type(self.model), "_load_pretrained_model"):
            self.model._load_pretrained_model = self

    @staticmethod
    def remove(model: Any) -> None:
        model.__dict__.pop("_load_pretrained_model", None)
