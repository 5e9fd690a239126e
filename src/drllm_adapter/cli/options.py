"""What the commands share: options that mean the same everywhere, the console, and reading and writing for them."""

import json
import os
import sys
from collections.abc import Iterable
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from ..errors import DrLLMError
from ..files import check_file, write_json_atomic
from ..tasks import MODES, TASKS

if TYPE_CHECKING:
    from ..tasks import Question

# Panels of `--help`, below the options that most people use.
PAPER, RUNNING = "The search's constants", "Running"

DTYPES = ("auto", "float32", "bfloat16", "float16")


def is_main_process() -> bool:
    """Whether this process speaks for its job; what launches several numbers them here."""
    return os.environ.get("RANK", "0") == "0"


console = Console(quiet=not is_main_process())


def writable(path: Path | None) -> Path | None:
    """Refuses an output file that could not be written, before the work that it is for."""
    if path is not None:
        check_file(path)
    return path


def one_of(names: Iterable[str], help: str, *flags: str, rich_help_panel: str | None = None) -> Any:
    """An option that takes one of some names and refuses any other before the command begins.

    Not an enumeration: some of the names are registered by other packages.
    """
    names = tuple(names)

    def check(parameter: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in names:
            raise DrLLMError(
                f"{parameter.opts[0]} must be one of {', '.join(names)}, but {value!r} was given; choose one of them."
            )
        return value

    metavar = f"[{'|'.join(names)}]"
    return typer.Option(*flags, callback=check, metavar=metavar, help=help, rich_help_panel=rich_help_panel)


def _use_threads(threads: int | None) -> int | None:
    """Before torch is imported, which reads it there; the choice of `models.speed` then leaves it."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(threads)
    return threads


Task = Annotated[
    str, one_of(TASKS, "arc: multiple choice, dart: mathematics, jsonl: your own questions, khop: made here.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="File of questions (JSON lines, Parquet) or dataset on the Hub (name or name:config), several with "
        "commas; the task's own dataset by default."
    ),
]
Split = Annotated[str | None, typer.Option(help="Split of a dataset on the Hub; train by default.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Most questions to use.")]
SkipFirst = Annotated[int, typer.Option(min=0, help="Questions to leave out at the beginning.")]
Mode = Annotated[
    str,
    one_of(
        MODES,
        "What an answer is. letter: of the right choice. cloze: likelihood of each choice's text. contrast: the same, "
        "with answers of other questions as choices. free: generated.",
    ),
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Length of a generated answer.")]
Dtype = Annotated[
    str, one_of(DTYPES, "auto: the faster one on a CPU, the model's own on a GPU.", rich_help_panel=RUNNING)
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, ..., or auto: the layers of one model spread over all GPUs, the CPU and the disk. By "
        "default the process's own GPU, if there is one.",
        rich_help_panel=RUNNING,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, callback=_use_threads, help="CPU threads; the faster number by default.", rich_help_panel=RUNNING
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.", rich_help_panel=RUNNING)]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", callback=writable, help="Write what is printed to this file, as JSON.", rich_help_panel=RUNNING
    ),
]
Base = Annotated[
    str | None, typer.Option(help="Base model, when it is not where the adapter or the supervision set says.")
]


class LogFormat(str, Enum):
    """How progress is told."""

    bar = "bar"
    json = "json"


Log = Annotated[
    LogFormat,
    typer.Option(
        help="Progress as a bar, or as json: one object a line on standard error, for machines.",
        rich_help_panel=RUNNING,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with what an interrupted run left in OUTPUT.", rich_help_panel=RUNNING)
]


def log_stream(log: LogFormat) -> TextIO | None:
    """Where the JSON lines go; None for a bar."""
    return sys.stderr if log is LogFormat.json else None


def say(text: str) -> None:
    """Print a line as it is: no colours, no wrapping."""
    console.print(text, highlight=False, soft_wrap=True)


def questions(
    task: str, data: str | None, split: str | None, limit: int | None, skip: int, seed: int, *, mode: str
) -> "list[Question]":
    """The questions that the options of a command name, which must go with the mode."""
    from ..tasks import build_prompts, grade, load_questions

    found = load_questions(task, data, split=split, limit=limit, skip=skip, seed=seed)
    # What does not go together, and a grader that is not installed, are refused before a model is loaded.
    free = {prompt.grader: prompt for prompt in build_prompts(found, mode) if prompt.mode == "free"}
    for grader, prompt in free.items():
        grade(grader, "", str(prompt.answer))
    return found


def check_adapter(adapter: str, base: str | None) -> Path:
    """The folder of an adapter without its weights; one that is not there, or such a base, is refused at once."""
    from ..models.download import check_model_name, fetch_adapter

    if base is not None:
        check_model_name(base)
    return fetch_adapter(adapter, weights=False)


def need_extra(module: str, extra: str, what: str) -> None:
    """Refuse what needs an optional part of the package that is not installed."""
    if find_spec(module) is None:
        raise DrLLMError(
            f"{what} needs the extra {extra}, but it is not installed; run pip install 'drllm-adapter[{extra}]'."
        )


def numbers(text: str | None, option: str, what: str, example: str) -> list[int] | None:
    """Whole numbers with commas between them; `option` is what the user typed them behind, and they are `what`."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise DrLLMError(
            f"{option} must be {what} with commas between them, such as {example}, but {text!r} was given; correct it."
        ) from error


def write_json(path: Path | None, value: Any) -> None:
    """What `--json` asks for; nothing when it was not given."""
    if path is not None:
        write_json_atomic(path, json.loads(json.dumps(value)))
