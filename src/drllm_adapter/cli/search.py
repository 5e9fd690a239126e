"""`drllm search`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DrLLMError
from ..search.tree import METHODS, REWARDS
from ..supervision.labels import LABEL_RULES
from .config import Config
from .options import (
    PAPER,
    RUNNING,
    ChatTemplate,
    Data,
    Device,
    Dtype,
    Grader,
    Json,
    Limit,
    Log,
    LogFormat,
    MaxNewTokens,
    Mode,
    Overwrite,
    ReportTo,
    Resume,
    Seed,
    SkipBad,
    SkipFirst,
    Split,
    Task,
    Threads,
    claim,
    console,
    left_out,
    log_stream,
    one_of,
    questions,
    quoted,
    say,
    write_json,
)


def search(
    base: Annotated[str, typer.Argument(help="The frozen model: a folder or a name on the Hub (owner/name@revision).")],
    output: Annotated[Path | None, typer.Option(help="Folder for the supervision set.")] = None,
    task: Task = None,
    data: Data = None,
    mode: Mode = "letter",
    split: Split = None,
    limit: Limit = None,
    skip: SkipFirst = 0,
    simulations: Annotated[int, typer.Option(min=1, help="Paths tried for each question.")] = 50,
    labels: Annotated[
        str,
        one_of(LABEL_RULES, f"What routers are to learn of the paths. {LABEL_RULES.help()}."),
    ] = "weighted",
    price: Annotated[
        float, typer.Option(min=0, help="Price of L block passes, in probability of the right answer.")
    ] = 0.4,
    exploration: Annotated[float, typer.Option(min=0, help="c of the UCB.", rich_help_panel=PAPER)] = 1.8,
    length_penalty: Annotated[
        float | None,
        typer.Option(
            min=0, help="lambda of the UCB; 3 with the labels shortest, else 1, by default.", rich_help_panel=PAPER
        ),
    ] = None,
    random_child: Annotated[
        float, typer.Option(min=0, max=1, help="Chance of following a random child.", rich_help_panel=PAPER)
    ] = 0.1,
    max_skip: Annotated[
        int, typer.Option(min=0, help="Most consecutive blocks left out by one edit.", rich_help_panel=PAPER)
    ] = 2,
    reward: Annotated[
        str | None,
        one_of(REWARDS, "Of a path; goes with the label rule by default. correct: 0 or 1.", rich_help_panel=PAPER),
    ] = None,
    early_stop: Annotated[
        bool | None,
        typer.Option(
            help="Stop a question once fixed or 2 passes shorter; goes with the label rule by default.",
            rich_help_panel=PAPER,
        ),
    ] = None,
    method: Annotated[
        str,
        one_of(
            METHODS,
            "tree: MCTS. random: paths of a few random edits, for regressions.",
            rich_help_panel=PAPER,
        ),
    ] = "tree",
    edits: Annotated[int, typer.Option(min=1, help="Most blocks that a random path edits.", rich_help_panel=PAPER)] = 6,
    bundle: Annotated[int, typer.Option(min=1, help="Questions searched side by side.", rich_help_panel=RUNNING)] = 64,
    memory: Annotated[
        float,
        typer.Option(
            min=0, help="Gigabytes of hidden states kept for the next paths; more is faster.", rich_help_panel=RUNNING
        ),
    ] = 2.0,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say how long it will take, by searching a few of the questions.")
    ] = False,
    json: Json = None,
    max_new_tokens: MaxNewTokens = None,
    chat_template: ChatTemplate = True,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    log: Log = LogFormat.bar,
    report_to: ReportTo = None,
    dtype: Dtype = "auto",
    device: Device = None,
    threads: Threads = None,
    config_file: Config = None,
) -> None:
    """Search better layer paths for every question of a file (MCTS) and save what was tried.

    Example: drllm search HuggingFaceTB/SmolLM2-135M-Instruct --task arc --data questions.jsonl --output paths

    On several GPUs: accelerate launch -m drllm_adapter search ... shares the questions; the rows stay the same.
    """
    from ..models.download import check_model_name
    from ..search import SUMMARY, SearchConfig
    from ..supervision import choose_label
    from ..supervision.rows import INFO, KIND

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
    if output is None and not estimate:
        raise DrLLMError("a search needs a folder for what it finds, but none was given; name it with --output.")
    choose_label((), labels, price)
    check_model_name(base)
    make_room = None
    if output is not None and not estimate:
        make_room = claim(output, KIND, INFO, SUMMARY, resume=resume, overwrite=overwrite)
    bad = left_out(skip_bad)
    asked = questions(task, data, split, limit, skip, seed, mode=mode, grader=grader, skip_bad=bad)
    if estimate:
        from ..workflow import estimate_paths

        expected = estimate_paths(
            base,
            asked,
            mode=mode,
            config=config,
            bundle=bundle,
            memory=memory,
            max_new_tokens=max_new_tokens,
            chat_template=chat_template,
            grader=grader,
            skip_bad=bad,
            dtype=dtype,
            device=device,
            console=console,
        )
        if bad is not None:
            bad.say()
        say(str(expected))
        write_json(json, asdict(expected))
        return
    assert output is not None
    assert make_room is not None
    make_room()
    from ..workflow import Labels, search_paths

    summary = search_paths(
        base,
        asked,
        output,
        mode=mode,
        config=config,
        labels=Labels(labels, price),
        resume=resume,
        bundle=bundle,
        memory=memory,
        max_new_tokens=max_new_tokens,
        chat_template=chat_template,
        grader=grader,
        skip_bad=bad,
        dtype=dtype,
        device=device,
        console=console,
        log=log_stream(log),
    )
    if bad is not None:
        bad.say()
    console.print(summary.table())
    say(f"Verdict: {summary.verdict}")
    write_json(json, asdict(summary))
    say(f"Saved in {output}. Next: drllm train {quoted(output)} --output adapter")
