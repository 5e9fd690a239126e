"""`drllm app`."""

import os
from typing import Annotated

import typer

from .groups import Place, unfolded
from .options import Base, check_adapter, need_extra, say


@unfolded
def page(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder, or owner/name[@branch] on the Hub.")],
    host: Annotated[str | None, typer.Option(help="Address to listen at; by default this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(help="By default the first free one from 7860 on.")] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    base: Base = None,
    *,
    place: Place,
) -> None:
    """A page in the browser: the routed and the base model's answers side by side, and the path, block by block.

    Click on a block to skip, run or repeat it, and move the sliders: the prompt is answered anew at once. Needs the
    extra app: pip install 'drllm-adapter[app]'. Nothing is sent anywhere.

    Example: drllm app adapter
    """
    need_extra("gradio", "app", "this command")
    check_adapter(adapter, base)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from ..app.page import launch

    say(f"Loading {adapter} ...")
    launch(adapter, base=base, **place.model, host=host, port=port, open_browser=open_browser)
