"""`drllm demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Seed, Threads, console


def demo(
    output: Annotated[Path, typer.Option(help="Folder for report.json, layers.png, adapter/ and what led to them.")],
    seed: Seed = 0,
    questions: Annotated[int, typer.Option(min=20, help="Questions to search and train on.")] = 500,
    test_questions: Annotated[int, typer.Option(min=20, help="Questions to evaluate on.")] = 500,
    simulations: Annotated[int, typer.Option(min=1, help="Simulations a question.")] = 80,
    threads: Threads = None,
) -> None:
    """Search, train, evaluate, save, load and generate with a small model that ships in the package; offline.

    Example: drllm demo --output demo
    """
    from ..files import check_claim

    check_claim(output, "demo")
    from ..workflow import run_demo

    run_demo(
        output, seed=seed, questions=questions, test_questions=test_questions, simulations=simulations, console=console
    )
