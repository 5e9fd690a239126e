"""Which of the paths that were tried become labels: small rules by name, so that a set is relabelled for free."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..decisions import Decisions, ScoredPath, passes
from ..errors import check_range
from ..registry import Registry


@dataclass(frozen=True)
class Labels:
    """What is learnt from the paths that were tried.

    Attributes:
        rule: the name of a label rule, see `LABEL_RULES`.
        price: of L block passes, in probability of the right answer.
    """

    rule: str = "weighted"
    price: float = 0.4


class LabelRule(ABC):
    """What is learnt of the paths tried on a question.

    Attributes:
        summary: a few words for `--help`.
        search: constants of a `SearchConfig` that go with the rule, where they are not the defaults.
        regresses: routers learn what every decision adds to the answer, from all paths (`training.EffectRegression`);
            `choose` then serves the metrics alone.
    """

    summary: ClassVar[str]
    search: ClassVar[Mapping[str, Any]] = {}
    regresses: ClassVar[bool] = False

    @abstractmethod
    def choose(self, paths: Sequence[ScoredPath], price: float) -> Decisions | None:
        """The one path that stands for a question; None drops the question. The order of `paths` must not matter."""

    def weigh(self, paths: Sequence[ScoredPath], price: float) -> list[tuple[Decisions, float]]:
        """The paths to imitate and their weights, which add up to 1, the chosen one first; empty drops the question."""
        label = self.choose(paths, price)
        return [] if label is None else [(label, 1.0)]


LABEL_RULES: Registry[LabelRule] = Registry("label rule", "drllm_adapter.label_rules")


class _ByWorth(LabelRule):
    """The path of highest p(right answer) - price x passes / L; of equals the shorter.

    Every question has one, unless the model gave no finite numbers along any path.
    """

    def choose(self, paths: Sequence[ScoredPath], price: float) -> Decisions | None:
        ranked = _by_worth(paths, price)
        return ranked[0][0] if ranked else None


@LABEL_RULES.register("weighted")
class Weighted(_ByWorth):
    """The best paths of a question, weighted by what they are worth, see `weighted`."""

    summary = "the best paths, weighted by p(right answer) against passes"

    def weigh(self, paths: Sequence[ScoredPath], price: float) -> list[tuple[Decisions, float]]:
        return weighted(paths, price)


@LABEL_RULES.register("effects")
class Effects(_ByWorth):
    """A regression over all paths, see `training.EffectRegression`."""

    summary = "a regression over all paths of what each decision adds"
    regresses = True


@LABEL_RULES.register("price")
class Price(_ByWorth):
    """One path a question."""

    summary = "the best path by p(right answer) against passes"


@LABEL_RULES.register("shortest")
class Shortest(LabelRule):
    """The published rule: the shortest right path, the likelier of equals; no label when none was right.

    It learns lucky guesses: with few possible answers some short path is right by chance. The price is not used.
    """

    summary = "the published rule: the shortest right path"
    search: ClassVar[Mapping[str, Any]] = {"length_penalty": 3.0, "reward": "correct", "early_stop": True}

    def choose(self, paths: Sequence[ScoredPath], price: float) -> Decisions | None:
        right = [path for path in paths if path.correct]
        if not right:
            return None
        return min(right, key=lambda path: (passes(path.decisions), -path.probability, path.decisions)).decisions


def choose_label(paths: Sequence[ScoredPath], rule: str, price: float) -> Decisions | None:
    """The label of a question under a rule, or None when the rule drops the question.

    Raises:
        DrLLMError: there is no such rule, or the price is not a number from 0.
    """
    return _checked(rule, price).choose(paths, price)


def choose_labels(paths: Sequence[ScoredPath], rule: str, price: float) -> list[tuple[Decisions, float]]:
    """What routers learn of a question under a rule: paths and their weights, which add up to 1; empty drops it.

    Raises:
        DrLLMError: as `choose_label`.
    """
    return _checked(rule, price).weigh(paths, price)


def _checked(rule: str, price: float) -> LabelRule:
    chosen = LABEL_RULES[rule]
    check_range("price", price, 0, math.inf, whole=False)
    return chosen()


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
