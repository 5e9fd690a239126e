"""`drllm serve`."""

from typing import Annotated

import typer

from .options import Base


def serve(
    context: typer.Context,
    adapter: Annotated[str, typer.Argument(help="The adapter, or a base for paths sent with the requests.")],
    base: Base = None,
    forced_only: Annotated[
        bool, typer.Option("--forced-only", help="Ask no routers: requests without a path take the base's.")
    ] = False,
    repeat_block: Annotated[
        list[int] | None,
        typer.Option(help="A block with pages for a second pass; every block that may repeat by default."),
    ] = None,
    depth_control: Annotated[
        float | None, typer.Option(min=-1, max=1, help="The paper's p; as saved by default.")
    ] = None,
    layer_budget: Annotated[int | None, typer.Option(help="Most block passes that a request may take.")] = None,
) -> None:
    """Serve a routed model by vLLM's OpenAI-compatible server; all further arguments are vLLM's own.

    Every request takes the path that the routers choose for its prompt, or the one that it brings in "vllm_xargs":
    {"drllm_path": [1, 0, 2, ...]}. GET /drllm/paths/ID says which path the response of that id took.

    Example: drllm serve me/routers --port 8000 --max-model-len 2048
    """
    from ..serving.server import run_server

    run_server(
        adapter,
        context.args,
        base=base,
        decide=not forced_only,
        repeat_blocks=repeat_block,
        depth_control=depth_control,
        layer_budget=layer_budget,
    )
