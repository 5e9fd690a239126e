"""Routed models in vLLM: every request along its own path, decided by the routers or sent with the request.

`LLM(**engine_arguments("me/routers"))` in Python, `drllm serve me/routers` over HTTP; docs/serving.md.
"""

from .arguments import engine_arguments
from .paths import paths_of

__all__ = ["engine_arguments", "paths_of"]
