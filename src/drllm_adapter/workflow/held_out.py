"""After every training: what the routers lose on questions that were held out, and the limits that were asked for."""

from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console

from ..decisions import execute_all
from ..evaluation import HeldOut, hold_to_limits, scoring_all
from ..scoring.plain import Scorer
from ..tasks import Prompt


def check_held_out(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_loss: float | None,
    mean_passes: float | None,
    batch_size: int = 16,
    console: Console | None = None,
    log: TextIO | None = None,
) -> HeldOut:
    """Run held-out prompts in the base and along the routers, set the depth control by the limits, and say so.

    Args:
        model: with the trained routers, before it is saved.
        prompts: not trained on; in the mode "self" with their references.
        max_loss, mean_passes: see `evaluation.hold_to_limits`.

    Raises:
        DrLLMError: see `hold_to_limits`.
    """
    scorer = Scorer(model, tokenizer, batch_size=batch_size)
    along_base = [execute_all(scorer.num_blocks)] * len(prompts)
    found = hold_to_limits(
        model,
        scorer.score(prompts, along_base),
        scoring_all(scorer, prompts, "held out", console, log),
        max_loss=max_loss,
        mean_passes=mean_passes,
    )
    if console is not None:
        console.print(f"held out  {found}", highlight=False, markup=False, soft_wrap=True)
    return found
