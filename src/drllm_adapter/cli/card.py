"""`drllm card`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, say, write_json


def card(
    folder: Annotated[Path, typer.Argument(help="Folder of an adapter or of a supervision set.")],
    report: Annotated[
        list[Path] | None, typer.Option(help="Folder that drllm eval wrote, to show on the card; may be repeated.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence identifier, such as apache-2.0.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Space with the adapter's page, owner/name, which the card links from now on.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Write or renew the README.md that the Hub shows: how it was made, what was measured, how to use it.

    Results come from evaluations inside the adapter's folder (drllm eval adapter --output adapter/evaluation) or from
    --report, and from nowhere else. What you wrote into the card stays.

    Example: drllm card adapter --report evaluation --license apache-2.0
    """
    from ..hub import add_evaluation, write_card

    for evaluation in report or ():
        add_evaluation(folder, evaluation)
    path = write_card(folder, license=license, space=space)
    say(f"Saved {path}.")
    write_json(json_file, {"card": path.read_text(encoding="utf-8")})
