"""What is said of an evaluation follows its intervals, and more questions settle what they are said to settle."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from drllm_adapter.evaluation.compare import compare
from drllm_adapter.evaluation.contenders import Contender, comparison
from drllm_adapter.evaluation.verdict import needed, verdict


@dataclass(frozen=True)
class Answer:
    correct: bool
    probability: float = 0.5
    decisions: tuple[int, ...] = (1, 1, 0, 1)
    agreement: float | None = None
    kl: float | None = None


def test_agreement_is_said_as_what_is_kept() -> None:
    routed = [Answer(True, agreement=share, kl=0.1) for share in (1.0, 0.5, 0.75, 1.0)]
    base = [Answer(True, agreement=1.0, kl=0.0)] * 4
    assert verdict(compare(base, routed, [None] * 4)).startswith("the routers keep 81.2 % of the base's own tokens (")


def test_the_same_share_has_the_same_interval_in_every_table() -> None:
    found = report(200, 80, 10, 110)
    routed, base = (np.array([1.0] * right + [0.0] * (400 - right)) for right in (280, 210))
    paired = np.array([1.0] * 200 + [0.0] * 80 + [1.0] * 10 + [0.0] * 110)
    row = comparison(Contender("routed", routed, 3.0), Contender("base", paired, 4.0))
    assert row["value"] == pytest.approx(base.mean())
    assert tuple(row["interval"]) == found.base.interval
    assert tuple(row["difference_interval"]) == found.difference_interval


def report(both: int, gained: int, lost: int, neither: int) -> Any:
    """Base against routed with so many questions that both, one or neither answers rightly."""
    base = [Answer(True)] * both + [Answer(False)] * gained + [Answer(True)] * lost + [Answer(False)] * neither
    routed = [Answer(True)] * (both + gained) + [Answer(False)] * (lost + neither)
    return compare(base, routed, [None] * len(base))


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((200, 80, 10, 110), "the routers are better, by 17.5 points"),
        ((200, 10, 80, 110), "the routers are worse, by 17.5 points"),
        ((50, 0, 0, 50), "answer all 100 questions as the base does"),
        ((45, 6, 4, 45), "100 questions do not show whether"),
    ],
)
def test_what_is_said(counts: tuple[int, int, int, int], said: str) -> None:
    assert said in verdict(report(*counts))
    assert "at 3.00 of 4 passes" in verdict(report(*counts))


@pytest.mark.parametrize("counts", [(45, 6, 4, 45), (40, 12, 7, 41), (500, 11, 8, 481)])
def test_as_many_questions_as_are_said_settle_it(counts: tuple[int, int, int, int]) -> None:
    """The same shares of answers on so many questions have an interval that just reaches zero."""
    found = report(*counts)
    assert found.difference_interval[0] < 0 < found.difference_interval[1]
    times = needed(found.base.of, found.difference_interval, found.difference) / found.base.of
    enough = report(*(round(1.1 * times * count) for count in counts))
    too_few = report(*(round(0.8 * times * count) for count in counts))
    assert enough.difference_interval[0] > 0 > too_few.difference_interval[0]
