"""`drllm lm-eval`."""

import sys

import typer

from .options import need_extra


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness' own command, where PEFT knows router adapters; all arguments are the harness'.

    Example: drllm lm-eval --model hf --model_args pretrained=BASE,peft=ADAPTER --tasks arc_easy --batch_size 16
    """
    need_extra("lm_eval", "lm-eval", "this command")
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *context.args]
    cli_evaluate()
