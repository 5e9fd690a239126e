"""`drllm lm-eval`."""

import sys

import typer

from ..errors import DrLLMError


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness' own command, where PEFT knows router adapters; all arguments are the harness'.

    Example: drllm lm-eval --model hf --model_args pretrained=BASE,peft=ADAPTER --tasks arc_easy --batch_size 16
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise DrLLMError(
            "this command needs the extra lm-eval, but it is not installed; run pip install 'drllm-adapter[lm-eval]'."
        ) from error
    sys.argv = ["lm_eval", *context.args]
    cli_evaluate()
