"""Which of the paths that were tried becomes the label: small pure functions, so that a set is relabelled for free."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..decisions import Decisions, ScoredPath, passes
from ..errors import DrLLMError


@dataclass(frozen=True)
class Labels:
    """What is learnt from the paths that were tried.

    Attributes:
        rule: "weighted" (several paths a question), or "price" or "shortest" (the paper's), one;
            or "effects", a regression over all of them, see `training.objectives`.
        price: of L block passes, in probability of the right answer.
    """

    rule: str = "weighted"
    price: float = 0.4


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
    ranked = _by_worth(paths, price)
    return ranked[0][0] if ranked else None


def _by_worth(paths: Sequence[ScoredPath], price: float) -> list[tuple[Decisions, float]]:
    """The paths that have a score and their worth, p(right answer) - price x passes / L; the best first.

    Of equals the shorter is first, then the one of higher decisions, so that the order of `paths` does not matter.
    """
    # Rounded, so that equal worth is found equal whatever its last bits are.
    ranked = [
        (path.decisions, round(path.probability - price * passes(path.decisions) / len(path.decisions), 9))
        for path in paths
        if not math.isnan(path.probability)
    ]
    return sorted(ranked, key=lambda item: (item[1], -passes(item[0]), item[0]), reverse=True)


LABEL_RULES: dict[str, Callable[[Sequence[ScoredPath], float], Decisions | None]] = {
    "weighted": price,
    "effects": price,
    "price": price,
    "shortest": shortest,
}
"""The one path that stands for a question. "weighted" adds others to it, see `choose_labels`; "effects" learns from all
paths and uses this one for its metrics only."""


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


def choose_labels(paths: Sequence[ScoredPath], rule: str, price: float) -> list[tuple[Decisions, float]]:
    """What routers learn of a question under a rule: paths and their weights, which add up to 1; empty drops it.

    Raises:
        DrLLMError: as `choose_label`.
    """
    label = choose_label(paths, rule, price)
    if label is None:
        return []
    return weighted(paths, price) if rule == "weighted" else [(label, 1.0)]


def weighted(
    paths: Sequence[ScoredPath], price: float = 0.4, *, temperature: float = 0.05, limit: int = 6
) -> list[tuple[Decisions, float]]:
    """Several labels for one question: its best paths, weighted by how good they are; the weights add up to 1.

    A path is worth p(right answer) - price x passes / L, and its weight is in proportion to exp(worth / temperature): a
    path that is worth `temperature` less counts 2.7 times less. This is advantage-weighted regression (Peng et al.,
    arXiv 1910.00177) over the paths tried; the baseline of the advantage cancels, because the weights of a question
    are normalised. One label a question hides that many paths are as good as the label; all of them together say
    which decisions matter.

    Args:
        limit: at most so many paths; those that would weigh less than 2 % are left out as well.

    Returns:
        The best path first, which is the label under "price"; empty when no path has a score.
    """
    best = _by_worth(paths, price)[:limit]
    weights = [math.exp((worth - best[0][1]) / temperature) for _, worth in best]
    kept = [weight for weight in weights if weight >= 0.02 * sum(weights)]
    return [(decisions, weight / sum(kept)) for (decisions, _), weight in zip(best, kept, strict=False)]
