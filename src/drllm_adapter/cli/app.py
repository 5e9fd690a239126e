"""The commands of `drllm`. What a command needs is imported when it runs, so that `--help` is quick."""

import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import DrLLMError, Interrupted, OtherProcessError
from .bench import bench
from .card import card
from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .lm_eval import lm_eval
from .options import is_main_process
from .probe import probe
from .push import push
from .search import search
from .train import train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Routers that make a frozen language model skip, execute or repeat its own blocks (Dr.LLM, arXiv 2510.12773).",
)
app.command()(probe)
app.command()(search)
app.command()(train)
app.command("eval")(evaluate)
app.command()(generate)
app.command()(export)
app.command()(info)
app.command()(push)
app.command()(card)
app.command()(demo)
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
) -> None:
    pass


def main() -> None:
    """Run the command; a mistake of the user ends in one sentence and exit code 2."""
    _quiet()
    try:
        app()
    except OtherProcessError:
        sys.exit(2)
    except DrLLMError as error:
        print(f"drllm: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        if is_main_process():
            print(f"drllm: {error}", file=sys.stderr)
        sys.exit(130)


def _quiet() -> None:
    """Libraries' own progress bars and notices would bury ours; set before they are imported."""
    import os
    import warnings

    warnings.simplefilter("ignore", FutureWarning)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
