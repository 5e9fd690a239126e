"""A sentence where a model answers nothing, or no better than by guessing: what is built on that shows nothing."""

import math
from collections.abc import Callable, Sequence

from ..tasks import Prompt


def chance_sentence(prompts: Sequence[Prompt], right: int, said: Callable[[Prompt], str | None]) -> str | None:
    """What to say of a base model that is right on `right` of the questions; None where that is fine.

    Args:
        said: what the base model generates for a free question.
    """
    if prompts[0].mode == "self":
        return None
    asked = f"{len(prompts):,} question{'s' if len(prompts) > 1 else ''}"
    if right == 0:
        free = next((prompt for prompt in prompts if prompt.mode == "free"), None)
        compared = ""
        if free is not None:
            compared = (
                f" For {free.text[-60:]!r} it said {(said(free) or '')[:200]!r}, which the grader {free.grader} "
                f"compared with {free.answer!r}."
            )
        return (
            f"the base model answered none of the {asked} rightly, so there is nothing that routers could keep."
            f"{compared} Look at --mode, --grader and --max-new-tokens before you go on."
        )
    chances = [1 / len(prompt.continuations) for prompt in prompts if prompt.mode != "free"]
    expected, spread = sum(chances), math.sqrt(sum(chance * (1 - chance) for chance in chances))
    if len(chances) == len(prompts) and right <= expected + 1.96 * spread:
        return (
            f"the base model is right on {right:,} of {asked}, which cannot be told from guessing ({expected:.1f} on "
            f"average): its paths are compared by luck. Ask more or easier questions, or use another --mode."
        )
    return None
