"""What the commands share: options that mean the same everywhere, the console, and reading and writing for them."""

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from ..errors import DrLLMError
from ..files import check_file, write_json_atomic

if TYPE_CHECKING:
    from ..tasks import Question


def is_main_process() -> bool:
    """Whether this process speaks for its job; what launches several numbers them here."""
    return os.environ.get("RANK", "0") == "0"


console = Console(quiet=not is_main_process())


def writable(path: Path | None) -> Path | None:
    """Refuses an output file that could not be written, before the work that it is for."""
    if path is not None:
        check_file(path)
    return path


Task = Annotated[
    str | None,
    typer.Option(
        help="arc (multiple choice), dart (free maths), jsonl (either, and prompts without answers) or khop (made "
        "here); jsonl with --mode self, else arc, by default."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="JSON-lines or Parquet file, text file with a prompt a line, or dataset on the Hub (name or name:config), "
        "several with commas; the task's own dataset by default."
    ),
]
Split = Annotated[str | None, typer.Option(help="Split of a dataset on the Hub; train by default.")]
Limit = Annotated[int | None, typer.Option(help="Most questions to use.")]
SkipFirst = Annotated[int, typer.Option(help="Questions to leave out at the beginning.")]
Mode = Annotated[
    str,
    typer.Option(
        help="What an answer is: letter, cloze (likelihood of each choice's text), contrast (the same, with answers of "
        "other questions as the choices of a free one) or free (generated); or self: none is needed, paths are "
        "compared with the base model's own greedy continuation."
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Length of a generated answer, the paper's by default; with --mode self of a continuation, 24."
    ),
]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template/--no-chat-template", help="Word prompts by the tokenizer's, if it has one.")
]
Dtype = Annotated[str, typer.Option(help="auto (the faster one on a CPU), float32, bfloat16 or float16.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, ..., or auto: the layers of one model spread over all GPUs, the CPU and the disk. By "
        "default the process's own GPU, if there is one."
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", callback=writable, help="Write what is printed to this file, as JSON."),
]
Base = Annotated[
    str | None, typer.Option(help="Base model, when it is not where the adapter or the supervision set says.")
]


class LogFormat(str, Enum):
    """How progress is told."""

    bar = "bar"
    json = "json"


Log = Annotated[
    LogFormat, typer.Option(help="Progress as a bar, or as json: one object a line on standard error, for machines.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run left in OUTPUT.")]


def log_stream(log: LogFormat) -> TextIO | None:
    """Where the JSON lines go; None for a bar."""
    return sys.stderr if log is LogFormat.json else None


def say(text: str) -> None:
    """Print a line as it is: no colours, no wrapping."""
    console.print(text, highlight=False, soft_wrap=True)


def questions(
    task: str | None,
    data: str | None,
    split: str | None,
    limit: int | None,
    skip: int,
    seed: int,
    mode: str | None = None,
) -> "list[Question]":
    """The questions that the options of a command name; with the mode "self" prompts, which need no answers."""
    from ..tasks import load_questions

    answers = mode != "self"
    task = task or ("arc" if answers else "jsonl")
    return load_questions(task, data, split=split, limit=limit, skip=skip, seed=seed, answers=answers)


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
