"""The jobs behind the commands, from folder to folder: search paths, train routers on them, evaluate the adapter."""

from ..supervision import Labels
from .demo import run_demo
from .evaluate import evaluate_adapter, evaluate_with_lm_eval
from .probe import probe_model
from .refine import refine_adapter
from .search import estimate_paths, search_paths
from .train import train_adapter

__all__ = [
    "Labels",
    "estimate_paths",
    "evaluate_adapter",
    "evaluate_with_lm_eval",
    "probe_model",
    "refine_adapter",
    "run_demo",
    "search_paths",
    "train_adapter",
]
