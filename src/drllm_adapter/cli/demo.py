"""`drllm demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Overwrite, Seed, Threads, claim, console, write_json


def demo(
    output: Annotated[Path, typer.Option(help="Folder for report.json, layers.png, adapter/ and what led to them.")],
    seed: Seed = 0,
    questions: Annotated[int, typer.Option(min=20, help="Questions to search and train on.")] = 500,
    test_questions: Annotated[int, typer.Option(min=20, help="Questions to evaluate on.")] = 500,
    simulations: Annotated[int, typer.Option(min=1, help="Simulations a question.")] = 80,
    overwrite: Overwrite = False,
    json_file: Json = None,
    threads: Threads = None,
) -> None:
    """Search, train, evaluate, save, load and generate with a small model that ships in the package; offline.

    Example: drllm demo --output demo
    """
    make_room = claim(output, "demo", "report.json", "report.json", overwrite=overwrite)
    make_room()
    from ..workflow import run_demo

    result = run_demo(
        output, seed=seed, questions=questions, test_questions=test_questions, simulations=simulations, console=console
    )
    write_json(json_file, result)
