"""`drllm search`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DrLLMError
from ..search.tree import METHODS, REWARDS
from ..supervision.labels import LABEL_RULES
from .config import Config
from .groups import Asked, Job, unfolded
from .options import (
    CONSTANTS,
    RUNNING,
    ChatTemplate,
    Grader,
    MaxNewTokens,
    Mode,
    SkipBad,
    console,
    constant,
    left_out,
    one_of,
    questions,
    quoted,
    say,
    write_json,
)


@dataclass(frozen=True)
class Constants:
    """Those of a `SearchConfig` that have an option; None goes with the label rule."""

    simulations: Annotated[int, typer.Option(min=1, help="Paths tried for each question.")] = 50
    exploration: Annotated[float, constant(min=0, help="c of the UCB.")] = 1.8
    length_penalty: Annotated[
        float | None,
        constant(min=0, help="lambda of the UCB; 3 with the labels shortest, else 1, by default."),
    ] = None
    random_child: Annotated[float, constant(min=0, max=1, help="Chance of following a random child.")] = 0.1
    max_skip: Annotated[int, constant(min=0, help="Most consecutive blocks left out by one edit.")] = 2
    reward: Annotated[
        str | None,
        one_of(REWARDS, "Of a path; goes with the label rule by default. correct: 0 or 1.", rich_help_panel=CONSTANTS),
    ] = None
    early_stop: Annotated[
        bool | None,
        constant(help="Stop a question once fixed or 2 passes shorter; goes with the label rule by default."),
    ] = None
    method: Annotated[
        str,
        one_of(
            METHODS,
            "tree: MCTS. random: paths of a few random edits, for regressions.",
            rich_help_panel=CONSTANTS,
        ),
    ] = "tree"
    edits: Annotated[int, constant(min=1, help="Most blocks that a random path edits.")] = 6


@unfolded
def search(
    base: Annotated[str, typer.Argument(help="The frozen model: a folder or a name on the Hub (owner/name@revision).")],
    output: Annotated[Path | None, typer.Option(help="Folder for the supervision set.")] = None,
    *,
    asked: Asked,
    mode: Mode = "letter",
    labels: Annotated[
        str,
        one_of(LABEL_RULES, f"What routers are to learn of the paths. {LABEL_RULES.help()}."),
    ] = "weighted",
    price: Annotated[
        float, typer.Option(min=0, help="Price of L block passes, in probability of the right answer.")
    ] = 0.4,
    bundle: Annotated[int, typer.Option(min=1, help="Questions searched side by side.", rich_help_panel=RUNNING)] = 64,
    memory: Annotated[
        float,
        typer.Option(
            min=0, help="Gigabytes of hidden states kept for the next paths; more is faster.", rich_help_panel=RUNNING
        ),
    ] = 2.0,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Only say how long it will take, by searching a few of the questions.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    max_new_tokens: MaxNewTokens = None,
    chat_template: ChatTemplate = True,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    constants: Constants,
    job: Job,
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

    changes = {name: value for name, value in asdict(constants).items() if value is not None}
    config = SearchConfig.for_rule(labels, **changes, seed=job.seed)
    if output is None and not estimate:
        raise DrLLMError("a search needs a folder for what it finds, but none was given; name it with --output.")
    choose_label((), labels, price)
    check_model_name(base)
    make_room = None
    if output is not None and not estimate:
        make_room = job.claim(output, KIND, INFO, SUMMARY)
    bad = left_out(skip_bad)
    found = questions(**asdict(asked), seed=job.seed, mode=mode, grader=grader, skip_bad=bad)
    how: dict[str, Any] = {
        "mode": mode, "config": config, "bundle": bundle, "memory": memory, "max_new_tokens": max_new_tokens,
        "chat_template": chat_template, "grader": grader, "skip_bad": bad,
    }  # fmt: skip
    if estimate:
        from ..workflow import estimate_paths

        expected = estimate_paths(base, found, **how, **job.model, console=console)
        if bad is not None:
            bad.say()
        say(str(expected))
        write_json(job.json_file, asdict(expected))
        return
    assert output is not None
    assert make_room is not None
    make_room()
    from ..workflow import Labels, search_paths

    summary = search_paths(base, found, output, labels=Labels(labels, price), **how, **job.running)
    if bad is not None:
        bad.say()
    console.print(summary.table())
    say(f"Verdict: {summary.verdict}")
    write_json(job.json_file, asdict(summary))
    say(f"Saved in {output}. Next: drllm train {quoted(output)} --output adapter")
