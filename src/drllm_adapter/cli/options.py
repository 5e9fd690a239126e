"""What the commands share: options that mean the same everywhere, the console, and reading and writing for them."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from ..errors import DrLLMError
from ..files import check_claim, check_file, folder_kind, write_json_atomic
from ..jobs.tracking import TRACKERS, finish, report_to
from ..tasks import MODES, TASKS, grader_of, graders_help

if TYPE_CHECKING:
    from ..tasks import Question

# Panels of `--help`, below the options that most people use.
QUESTIONS, CONSTANTS, RUNNING = "Reading the questions", "Constants", "Running"
constant = partial(typer.Option, rich_help_panel=CONSTANTS)

DTYPES = ("auto", "float32", "bfloat16", "float16")


def is_main_process() -> bool:
    """Whether this process speaks for its job; what launches several numbers them here."""
    return os.environ.get("RANK", "0") == "0"


# What is printed holds names, prompts and answers of people: "[/INST]" in them is no markup.
console = Console(quiet=not is_main_process(), markup=False, emoji=False)


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


def _known_grader(name: str | None) -> str | None:
    if name is not None:
        grader_of(name)
    return name


Task = Annotated[
    str | None,
    one_of(
        TASKS,
        f"{TASKS.help()}. jsonl with --mode self, else arc, by default.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="File of questions (JSON lines, CSV, Parquet) or of prompts (a .txt with one a line), or dataset on the "
        "Hub (name or name:config); several with commas. The task's own dataset by default."
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Split of a dataset on the Hub; train by default, test for drllm eval.", rich_help_panel=QUESTIONS
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Most questions to use.")]
SkipFirst = Annotated[
    int, typer.Option(min=0, help="Questions to leave out at the beginning.", rich_help_panel=QUESTIONS)
]
Mode = Annotated[
    str,
    one_of(
        MODES,
        "What an answer is. letter: that of the right choice; cloze: the likeliest choice, by its text; contrast: the "
        "likeliest of the right answer and others' answers; free: generated text; self: no answer is needed, the base "
        "model's own continuation is what paths are compared with.",
    ),
]
Grader = Annotated[
    str | None,
    typer.Option(
        callback=_known_grader, rich_help_panel=QUESTIONS,
        help=f"How a generated answer is judged; by what the references look like by default. {graders_help()}.",
    ),
]  # fmt: skip
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out questions that cannot be asked, and count them.", rich_help_panel=QUESTIONS
    ),
]
AsTrained = Annotated[
    str | None, one_of(MODES, "What an answer is, see drllm search --help; as in training by default.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Length of a generated answer, by its grader by default, or of the continuation of --mode self: 24.",
        rich_help_panel=QUESTIONS,
    ),
]
ChatTemplate = Annotated[
    bool,
    typer.Option(
        "--chat-template/--no-chat-template",
        help="Word prompts by the tokenizer's, if it has one.",
        rich_help_panel=QUESTIONS,
    ),
]
TemplateAsTrained = Annotated[
    bool | None,
    typer.Option(
        "--chat-template/--no-chat-template",
        help="Word prompts by the tokenizer's; as in training by default.",
        rich_help_panel=QUESTIONS,
    ),
]
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


MaxLoss = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        help="Most that the routers may lose against the base on questions held out, in points of the metric (upper "
        "end of the 95 % interval); where no setting but the base itself keeps it, every block executes.",
    ),
]
MeanPasses = Annotated[
    float | None, typer.Option(min=0, help="Most mean block passes on the questions held out; --max-loss goes first.")
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


def _report(context: typer.Context, tracker: str | None) -> str | None:
    if tracker is not None and is_main_process():
        report_to(tracker, context.info_name or "", lambda: context.params)
        context.call_on_close(finish)
    return tracker


ReportTo = Annotated[
    str | None,
    typer.Option(
        callback=_report,
        metavar=f"[{'|'.join(TRACKERS)}]",
        help="Send progress and results there as well, as the option of that name does in Trainer.",
        rich_help_panel=RUNNING,
    ),
]


Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what an earlier run of this command left in OUTPUT.", rich_help_panel=RUNNING
    ),
]


def claim(
    output: Path, kind: str, begun_as: str, finished_as: str, *, resume: bool = False, overwrite: bool = False
) -> Callable[[], None]:
    """Refuse a folder that may not be written to; what is given back makes room in it, once all else is checked.

    Args:
        kind, begun_as, finished_as: see `jobs.open_folder`.
    """
    from ..jobs import is_unfinished

    if resume and overwrite:
        raise DrLLMError("a run goes on with --resume or begins anew with --overwrite, but both were given; drop one.")
    check_claim(output, kind, resume=resume or overwrite, unfinished=is_unfinished(output, begun_as, finished_as))

    def make_room() -> None:
        # A folder of the same kind alone: whatever else somebody has in a folder is not ours to remove.
        if overwrite and is_main_process() and folder_kind(output) == kind:
            shutil.rmtree(output)

    if overwrite and os.environ.get("WORLD_SIZE", "1") != "1":
        raise DrLLMError(
            f"several processes cannot replace {output}, which one may find half removed; remove it first."
        )
    return make_room


def log_stream(log: LogFormat) -> TextIO | None:
    """Where the JSON lines go; None for a bar."""
    return sys.stderr if log is LogFormat.json else None


def say(text: str) -> None:
    """Print a line as it is: no colours, no wrapping."""
    console.print(text, highlight=False, soft_wrap=True)


class LeftOut:
    """What `--skip-bad` asks for: counts the questions that are left out, and says so once the others are known."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def say(self) -> None:
        """How many were left out since this was last said, and why the first one was."""
        if self.sentences:
            say(f"{len(self.sentences):,} questions that cannot be asked are left out; the first: {self.sentences[0]}")
            self.sentences.clear()


def left_out(skip_bad: bool) -> LeftOut | None:
    """For `questions` and the functions that ask them; None refuses what is bad."""
    return LeftOut() if skip_bad else None


def questions(
    task: str | None,
    data: str | None,
    split: str | None,
    limit: int | None,
    skip: int,
    seed: int,
    *,
    mode: str,
    grader: str | None = None,
    skip_bad: LeftOut | None = None,
) -> "list[Question]":
    """The questions that the options of a command name, which must go with the mode."""
    from ..tasks import load_questions, word_questions

    with_answers = mode != "self"
    found = load_questions(
        task or ("arc" if with_answers else "jsonl"), data, split=split, limit=limit, skip=skip, seed=seed,
        with_answers=with_answers, skip_bad=skip_bad,
    )  # fmt: skip
    if with_answers:
        # What does not go together, and a grader that is not installed, are refused before a model is loaded.
        found, _ = word_questions(found, mode, grader=grader, skip_bad=skip_bad)
    if skip_bad is not None:
        skip_bad.say()
    return found


def check_adapter(adapter: str, base: str | None) -> Path:
    """The folder of an adapter without its weights; one that is not there, or such a base, is refused at once."""
    from ..models.download import check_model_name, fetch_adapter

    if base is not None:
        check_model_name(base)
    return fetch_adapter(adapter, weights=False)


def as_trained(
    adapter: str, task: str | None, mode: str | None, grader: str | None = None
) -> tuple[str | None, str, str | None]:
    """Task, mode and grader as given, or as the adapter was trained, which is then said."""
    from ..models.download import load_training_record

    learnt = load_training_record(adapter).get("supervision", {})
    told = []
    if mode is None and learnt.get("mode") in MODES:
        mode = str(learnt["mode"])
        told.append(f"--mode {mode}")
    if task is None and learnt.get("tasks"):
        task = _task_of(learnt)
        told.append(f"--task {task}")
    if grader is None and mode == "free" and learnt.get("grader"):
        grader = _known_grader(str(learnt["grader"]))
        told.append(f"--grader {grader}")
    if told:
        say(f"As in training: {' '.join(told)}.")
    return task, mode or "letter", grader


def _task_of(learnt: Mapping[str, Any]) -> str:
    """The task of a command by what an adapter's record says of its training."""
    # Names that rows give themselves are no tasks of a command.
    return str(learnt["tasks"][0]) if learnt["tasks"] in [[name] for name in TASKS] else "jsonl"


def say_next(output: Path, learnt: Mapping[str, Any]) -> None:
    """Where an adapter was saved, and how it is evaluated by what its record says of its training."""
    # A dataset has a split to test on; other questions are the user's to name.
    hub = [source for source in learnt["sources"] if source["hub"]]
    data = "--seed 12345" if _task_of(learnt) == "khop" else "--data TEST_QUESTIONS"
    if len(hub) == len(learnt["sources"]) == 1:
        data = f"--data {hub[0]['name']}{':' + hub[0]['config'] if hub[0]['config'] else ''}"
    folder = quoted(output)
    say(f"Saved in {output}. Next: drllm eval {folder} {data} --output {quoted(output / 'evaluation')}")


def quoted(path: Path) -> str:
    """A path as it is typed in a shell."""
    return shlex.quote(str(path))


def worded_by_template(adapter: str) -> bool:
    """Whether the prompts of the adapter's training may have been worded by a chat template."""
    from ..models.download import load_training_record

    return load_training_record(adapter).get("supervision", {}).get("wording", "chat") == "chat"


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
