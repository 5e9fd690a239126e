"""The commands of `drllm`. What a command needs is imported when it runs, so that `--help` is quick."""

import io
import os
import signal
import sys
import time
import traceback
from types import FrameType
from typing import Annotated

import typer

from .. import __version__
from ..errors import DrLLMError, Interrupted, OtherProcessError
from .app import page
from .bench import bench
from .card import card
from .demo import demo
from .evaluate import evaluate
from .export import export
from .fit import fit
from .generate import generate
from .help import Command
from .info import info
from .lm_eval import lm_eval
from .options import is_main_process
from .probe import probe
from .push import push
from .refine import refine
from .search import search
from .serve import serve
from .train import train

_DEBUG = "DRLLM_DEBUG"
_SECONDS_FOR_THE_MAIN_PROCESS = 10
# typer has its own copy of click or imports it, which depends on its version.
_USAGE_ERROR: type[typer.BadParameter] = typer.BadParameter.__base__  # type: ignore[assignment]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Routers that make a frozen language model skip, execute or repeat its own blocks (Dr.LLM, arXiv 2510.12773).",
)
app.command(cls=Command)(fit)
app.command(cls=Command)(probe)
app.command(cls=Command)(search)
app.command(cls=Command)(train)
app.command(cls=Command)(refine)
app.command("eval", cls=Command)(evaluate)
app.command(cls=Command)(generate)
app.command(cls=Command)(export)
app.command(cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command("app", cls=Command)(page)
app.command(cls=Command)(info)
app.command(cls=Command)(push)
app.command(cls=Command)(card)
app.command(cls=Command)(demo)
app.command(
    "lm-eval", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(lm_eval)
app.add_typer(bench, name="bench")


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show the traceback behind an error; {_DEBUG}=1 does so as well.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; a mistake of the user ends in one sentence and exit code 2."""
    _quiet()
    signal.signal(signal.SIGINT, _stop)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets another one, and no traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:]
    if "--debug" in arguments and arguments[0] != "lm-eval":  # the harness' own options are its own
        os.environ[_DEBUG] = "1"
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except OtherProcessError:
        sys.exit(2)
    except DrLLMError as error:
        _end(str(error), 2)
    except Interrupted as error:
        _end(str(error), 130)
    except _USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx is not None else "drllm"
        said = error.format_message().rstrip(".")
        if not said:  # no arguments at all: the help was printed
            sys.exit(2)
        _end(f"{said[0].lower()}{said[1:]}; {command} --help lists what there is.", 2)


def _end(message: str, code: int) -> None:
    if os.environ.get(_DEBUG):
        traceback.print_exc()
    if is_main_process():
        print(f"drllm: {' '.join(message.split())}", file=sys.stderr)
    elif code == 2:
        # What launched the processes ends all of them when one leaves: the main one has to say the same first.
        time.sleep(_SECONDS_FOR_THE_MAIN_PROCESS)
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    # Jobs have a handler of their own, which finishes something first; this one is for all that is before and after.
    raise Interrupted("stopped; finished work is kept, and where a command has --resume it goes on with it.")


def _quiet() -> None:
    """Libraries' own progress bars and notices would bury ours; set before they are imported."""
    import warnings

    warnings.simplefilter("ignore", FutureWarning)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
