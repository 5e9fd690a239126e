"""`drllm search`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DrLLMError
from ..supervision.labels import LABEL_RULES
from .config import Config
from .options import (
    Data,
    Device,
    Dtype,
    Json,
    Limit,
    Log,
    LogFormat,
    MaxNewTokens,
    Mode,
    Resume,
    Seed,
    SkipFirst,
    Split,
    Task,
    console,
    log_stream,
    questions,
    say,
    write_json,
)


def search(
    base: Annotated[str, typer.Argument(help="The frozen model: a folder or a name on the Hub (owner/name@revision).")],
    output: Annotated[Path | None, typer.Option(help="Folder for the supervision set.")] = None,
    task: Task = "arc",
    data: Data = None,
    mode: Mode = "letter",
    split: Split = None,
    limit: Limit = None,
    skip: SkipFirst = 0,
    simulations: Annotated[int, typer.Option(help="Simulations a question.")] = 50,
    labels: Annotated[str, typer.Option(help=f"What is to be learnt: {LABEL_RULES.help()}.")] = "weighted",
    price: Annotated[float, typer.Option(help="Price of L block passes, in probability of the right answer.")] = 0.4,
    exploration: Annotated[float, typer.Option(help="c of the UCB.")] = 1.8,
    length_penalty: Annotated[
        float | None, typer.Option(help="lambda of the UCB; 3 with the labels shortest, else 1, by default.")
    ] = None,
    random_child: Annotated[float, typer.Option(help="Chance of following a random child.")] = 0.1,
    max_skip: Annotated[int, typer.Option(help="Most consecutive positions left out by one edit.")] = 2,
    reward: Annotated[
        str | None, typer.Option(help="probability or correct (0/1); goes with the label rule by default.")
    ] = None,
    early_stop: Annotated[
        bool | None,
        typer.Option(help="Stop a question once fixed or 2 passes shorter; goes with the label rule by default."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="tree (MCTS), or random: --simulations paths of a few random edits, for regressions.")
    ] = "tree",
    edits: Annotated[int, typer.Option(help="Most blocks that a random path edits.")] = 6,
    bundle: Annotated[int, typer.Option(help="Questions searched side by side.")] = 64,
    memory: Annotated[
        float, typer.Option(min=0, help="Gigabytes of hidden states kept for the next paths; more is faster.")
    ] = 2.0,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say how long it will take, by searching a few of the questions.")
    ] = False,
    json: Json = None,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
    resume: Resume = False,
    log: Log = LogFormat.bar,
    dtype: Dtype = "auto",
    device: Device = None,
    config_file: Config = None,
) -> None:
    """Search better layer paths for every question of a file (MCTS) and save what was tried.

    Example: drllm search HuggingFaceTB/SmolLM2-135M-Instruct --task arc --data questions.jsonl --output paths

    On several GPUs: accelerate launch -m drllm_adapter search ... shares the questions; the rows stay the same.
    """
    from ..search import SearchConfig
    from ..workflow import Labels, search_paths

    changes: dict[str, Any] = {
        "simulations": simulations,
        "exploration": exploration,
        "random_child": random_child,
        "max_skip": max_skip,
        "method": method,
        "edits": edits,
        "seed": seed,
    }
    for name, value in (("length_penalty", length_penalty), ("reward", reward), ("early_stop", early_stop)):
        if value is not None:
            changes[name] = value
    config = SearchConfig.for_rule(labels, **changes)
    if estimate:
        from ..workflow import estimate_paths

        expected = estimate_paths(
            base,
            questions(task, data, split, limit, skip, seed),
            mode=mode,
            config=config,
            bundle=bundle,
            memory=memory,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            device=device,
            console=console,
        )
        say(str(expected))
        write_json(json, asdict(expected))
        return
    if output is None:
        raise DrLLMError("a search needs a folder for what it finds, but none was given; name it with --output.")
    summary = search_paths(
        base,
        questions(task, data, split, limit, skip, seed),
        output,
        mode=mode,
        config=config,
        labels=Labels(labels, price),
        resume=resume,
        bundle=bundle,
        memory=memory,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        console=console,
        log=log_stream(log),
    )
    console.print(summary.table())
    write_json(json, asdict(summary))
    say(f"Saved in {output}. Next: drllm train {output} --output adapter")
