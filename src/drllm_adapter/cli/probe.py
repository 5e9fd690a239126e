"""`drllm probe`."""

from pathlib import Path
from typing import Annotated

import typer

from .groups import Place, unfolded
from .options import (
    ChatTemplate,
    Data,
    Json,
    Log,
    LogFormat,
    MaxNewTokens,
    Overwrite,
    Seed,
    SkipBad,
    Split,
    Task,
    claim,
    console,
    left_out,
    log_stream,
    questions,
    say,
    write_json,
)


@unfolded
def probe(
    model: Annotated[str, typer.Argument(help="The base model: a folder or a name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for report.json and probe.png.")],
    data: Data = None,
    task: Task = None,
    split: Split = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each data file or dataset.")] = 100,
    most_skips: Annotated[
        int | None, typer.Option(min=1, help="Most blocks left out together; a third of them by default.")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    chat_template: ChatTemplate = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts a forward pass.")] = 64,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json_file: Json = None,
    log: Log = LogFormat.bar,
    *,
    place: Place,
) -> None:
    """Measure whether routers can help a model on some prompts, before anything is searched or trained.

    Needs no answers: what is compared is the model's own continuation of each prompt. Says which blocks are nearly
    free, how much prompts differ in what can be left out, how much of that the prompt foretells, and how much of the
    model's output is kept at equal passes by leaving out the same for all, by the kind of prompt (the field `kind`, or
    the file), and by the prompt.

    Example: drllm probe HuggingFaceTB/SmolLM2-135M-Instruct --data prompts.jsonl --output probe
    """
    from ..models.download import check_model_name
    from ..tasks import names_of

    make_room = claim(output, "probe", "report.json", "report.json", overwrite=overwrite)
    check_model_name(model)
    # The limit is for each source: what kinds have in common cannot be seen from the first one alone.
    names = [None] if data is None else names_of(data)
    bad = left_out(skip_bad)
    asked = [
        question
        for name in names
        for question in questions(task, name, split, limit, 0, seed, mode="self", skip_bad=bad)
    ]
    from ..workflow import probe_model

    make_room()
    report = probe_model(
        model, asked, output, most_skips=most_skips, max_new_tokens=max_new_tokens, chat_template=chat_template,
        skip_bad=bad, batch_size=batch_size, seed=seed, **place.model, console=console, log=log_stream(log),
    )  # fmt: skip
    if bad is not None:
        bad.say()
    for table in report.tables():
        console.print(table)
    say(f"Verdict: {report.verdict}")
    write_json(json_file, report.to_json())
    say(f"Saved in {output}: report.json, probe.png.")
