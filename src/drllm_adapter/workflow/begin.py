"""What every job begins with: the model in the dtype of the run, the prompts, names that hold from anywhere."""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import DrLLMError
from ..jobs import Processes
from ..scoring.plain import Scorer
from ..tasks import Prompt, Question, word_questions


def load_once(
    load: Callable[[str], tuple[Any, Any]], dtype: str, device: str | None, processes: Processes
) -> tuple[Any, Any]:
    """What `load(dtype)` gives; "auto", which is a measurement on a CPU, is what the main process finds.

    Raises:
        DrLLMError: several processes would each spread the model over all devices of their machine.
    """
    if device == "auto" and processes.local_count > 1:
        raise DrLLMError(
            f"with device auto one process uses all devices of its machine, but {processes.local_count} were started "
            f"on it; start one a machine, or one for each group of devices with CUDA_VISIBLE_DEVICES."
        )
    if dtype != "auto" or processes.count == 1 or (device or processes.device) != "cpu":
        return load(dtype)
    loaded: list[tuple[Any, Any]] = []

    def load_first() -> str:
        loaded.append(load(dtype))
        return dtype_name(loaded[0][0])

    chosen = processes.from_main(load_first)
    return loaded[0] if processes.is_main else load(chosen)


def dtype_name(model: Any) -> str:
    """The dtype in words: bfloat16, float32, ..."""
    return str(model.dtype).removeprefix("torch.")


def begun_dtype(output: str | os.PathLike[str], name: str) -> str:
    """The dtype of the run that was begun in the folder; "auto" when none was."""
    try:
        return str(json.loads((Path(output) / name).read_text(encoding="utf-8"))["dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        return "auto"


def prompts_of(
    questions: Sequence[Question],
    mode: str,
    scorer: Scorer,
    *,
    max_new_tokens: int | None = None,
    chat_template: bool = True,
    grader: str | None = None,
    skip_bad: Callable[[str], None] | None = None,
) -> tuple[list[Question], list[Prompt]]:
    """The questions as they are put to the model, see `word_questions`; what does not fit it is refused.

    Args:
        chat_template: whether the tokenizer's is used, where it has one.
    """
    return word_questions(
        questions,
        mode,
        scorer.tokenizer if chat_template else None,
        grader=grader,
        max_new_tokens=max_new_tokens,
        check=scorer.check,
        skip_bad=skip_bad,
    )


def teller(console: Console | None) -> Callable[[str], None]:
    """Where a scorer's notices go: above the progress bar, or a warning when there is no console."""
    return (
        warnings.warn
        if console is None
        else partial(console.print, highlight=False, markup=False, emoji=False, soft_wrap=True)
    )


def full_name(name: str) -> str:
    """A folder's absolute path, so that an adapter finds its base from anywhere; a Hub name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
