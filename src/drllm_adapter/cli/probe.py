"""`drllm probe`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Data,
    Device,
    Dtype,
    Grader,
    Mode,
    Seed,
    SkipBad,
    Split,
    Task,
    Threads,
    console,
    left_out,
    questions,
    say,
)


def probe(
    model: Annotated[str, typer.Argument(help="The base model: a folder or a name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for report.json and probe.png.")],
    task: Task = "jsonl",
    data: Data = None,
    mode: Mode = "contrast",
    split: Split = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each data file or dataset.")] = 150,
    paths: Annotated[int, typer.Option(min=2, help="Random paths that every question is scored along.")] = 24,
    edits: Annotated[int, typer.Option(min=1, help="Most blocks that a random path edits.")] = 6,
    single_edits: Annotated[
        int, typer.Option(min=1, help="Single edits that a question is scored along, of the two of each block.")
    ] = 16,
    price: Annotated[float, typer.Option(min=0, help="Of L block passes, in probability of the right answer.")] = 0.4,
    batch_size: Annotated[int, typer.Option(min=1, help="Most questions a forward pass.")] = 64,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Measure whether routers can help a model on some questions, before a long search is paid for.

    Says which blocks are nearly free, how much the best path differs between tasks and between questions, how much of
    that the prompt tells, and what paths chosen by the prompt would gain over the best static path.

    Example: drllm probe HuggingFaceTB/SmolLM2-135M-Instruct --data arc.jsonl,gsm8k.jsonl --output probe
    """
    from ..files import check_claim
    from ..models.download import check_model_name
    from ..tasks import names_of

    check_claim(output, "probe")
    check_model_name(model)
    # The limit is for each source: what tasks have in common cannot be seen from the first one alone.
    names = [None] if data is None else names_of(data)
    bad = left_out(skip_bad)
    asked = [
        question
        for name in names
        for question in questions(task, name, split, limit, 0, seed, mode=mode, grader=grader, skip_bad=bad)
    ]
    from ..workflow import probe_model

    report = probe_model(
        model,
        asked,
        output,
        mode=mode,
        grader=grader,
        skip_bad=bad,
        paths=paths,
        edits=edits,
        single_edits=single_edits,
        price=price,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        device=device,
        console=console,
    )
    if bad is not None:
        bad.say()
    for table in report.tables():
        console.print(table)
    say(f"Verdict: {report.verdict}")
    say(f"Saved in {output}: report.json, probe.png.")
