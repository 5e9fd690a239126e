"""What every job begins with: the model in the dtype of the run, the prompts, names that hold from anywhere."""

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import DrLLMError
from ..jobs import Processes
from ..scoring.plain import Scorer
from ..tasks import Prompt, Question, word_questions


def load_once(
    load: Callable[..., tuple[Any, Any]],
    dtype: str,
    device: str | None,
    processes: Processes,
    begun: Path | None = None,
) -> tuple[Any, Any]:
    """What `load(dtype=, device=)` gives; "auto", a measurement on a CPU, is what the main process finds.

    Args:
        begun: what an interrupted run left of its settings, whose dtype then is the automatic one.

    Raises:
        DrLLMError: several processes would each spread the model over all devices of their machine.
    """
    if device == "auto" and processes.local_count > 1:
        raise DrLLMError(
            f"with device auto one process uses all devices of its machine, but {processes.local_count} were started "
            f"on it; start one a machine, or one for each group of devices with CUDA_VISIBLE_DEVICES."
        )
    if dtype == "auto" and begun is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            dtype = str(json.loads(begun.read_text(encoding="utf-8"))["dtype"])
    place = device or processes.device
    if dtype != "auto" or processes.count == 1 or place != "cpu":
        return load(dtype=dtype, device=place)
    loaded: list[tuple[Any, Any]] = []

    def load_first() -> str:
        loaded.append(load(dtype=dtype, device=place))
        return dtype_name(loaded[0][0])

    chosen = processes.from_main(load_first)
    return loaded[0] if processes.is_main else load(dtype=chosen, device=place)


def dtype_name(model: Any) -> str:
    """The dtype in words: bfloat16, float32, ..."""
    return str(model.dtype).removeprefix("torch.")


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
