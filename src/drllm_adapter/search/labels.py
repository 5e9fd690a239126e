"""Which of the paths that were tried becomes the label: small pure functions, so that a set is relabelled for free."""

import math
from collections.abc import Callable, Sequence

from ..decisions import Decisions, passes
from ..errors import DrLLMError
from .tree import ScoredPath


def shortest(paths: Sequence[ScoredPath], price: float = 0.0) -> Decisions | None:
    """The published rule: the shortest right path, the likelier of equals; None (no label) when none was right.

    It learns lucky guesses: with few possible answers some short path is right by chance. `price` is not used.
    """
    right = [path for path in paths if path.correct]
    if not right:
        return None
    return min(right, key=lambda path: (passes(path.decisions), -path.probability, path.decisions)).decisions


def price(paths: Sequence[ScoredPath], price: float = 0.4) -> Decisions | None:
    """The path of highest p(right answer) - price x passes / L; of equals the shorter.

    Every question has one, unless the model gave no finite numbers along any path.
    """
    paths = [path for path in paths if not math.isnan(path.probability)]
    if not paths:
        return None

    def worth(path: ScoredPath) -> tuple[float, int, Decisions]:
        cost = price * passes(path.decisions) / len(path.decisions)
        # Rounded, so that equal worth is found equal; lower decisions last, to make the order total.
        return round(path.probability - cost, 9), -passes(path.decisions), path.decisions

    return max(paths, key=worth).decisions


LABEL_RULES: dict[str, Callable[[Sequence[ScoredPath], float], Decisions | None]] = {
    "price": price,
    "shortest": shortest,
}


def choose_label(paths: Sequence[ScoredPath], rule: str, price: float) -> Decisions | None:
    """The label of a question under a rule, or None when the rule drops the question.

    Raises:
        DrLLMError: there is no such rule, or the price is not a number from 0.
    """
    if rule not in LABEL_RULES:
        raise DrLLMError(
            f"the label rule must be one of {', '.join(LABEL_RULES)}, but {rule!r} was given; choose one of them."
        )
    if isinstance(price, bool) or not isinstance(price, (int, float)) or not price >= 0:
        raise DrLLMError(f"price must be a number of at least 0, but {price!r} was given; correct it.")
    return LABEL_RULES[rule](paths, price)
