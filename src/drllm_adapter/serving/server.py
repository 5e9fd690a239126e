"""vLLM's OpenAI-compatible server with the arguments of a routed engine."""

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from ..errors import DrLLMError
from .arguments import engine_arguments, require_vllm
from .settings import REFUSED

# What `engine_arguments` adds to rather than replaces, or looks at.
_TAKEN_OVER = ("hf_overrides", "additional_config", "logits_processors", "enable_prefix_caching",
               "enable_chunked_prefill", "worker_cls", "scheduler_cls", *REFUSED)  # fmt: skip


def run_server(adapter: str, arguments: Sequence[str], **options: Any) -> None:
    """Serve until the process is stopped.

    Args:
        adapter, options: see `engine_arguments`.
        arguments: vLLM's own, as on its command line.

    Raises:
        DrLLMError: see `engine_arguments`; one of `arguments` would run requests along wrong paths.
    """
    require_vllm()
    _allow_endpoint()
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server as serve
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="drllm serve"))
    parsed = parser.parse_args(list(arguments))
    asked = {name: value for name, value in vars(parsed).items() if value != parser.get_default(name)}
    if "model" in asked or "model_tag" in asked:
        raise DrLLMError("the model is the adapter's base, but another was given to vLLM; leave it out, or use --base.")
    if parsed.served_model_name is None:
        parsed.served_model_name = [adapter]
    taken = {name: value for name, value in asked.items() if name in _TAKEN_OVER}
    for name, value in engine_arguments(adapter, **options, **taken).items():
        setattr(parsed, name, value)
    validate_parsed_serve_args(parsed)
    uvloop.run(serve(parsed))


def _allow_endpoint() -> None:
    """vLLM loads endpoints only where VLLM_PLUGINS names them, and then no other plugin that it does not name."""
    if "VLLM_PLUGINS" not in os.environ:
        names = {found.name for group in entry_points().groups if group.startswith("vllm.")
                 for found in entry_points(group=group) if group != "vllm.endpoint_plugins"}  # fmt: skip
        os.environ["VLLM_PLUGINS"] = ",".join(sorted(names | {"drllm_adapter"}))
