"""Free questions as choices: the reference answer among answers of other questions, so that likelihood alone grades."""

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from .questions import Question

CHOICES = 4
_CLOSEST = 24


def as_choices(questions: Sequence[Question], seed: int = 0) -> list[Question]:
    """Every free question with its answer among three answers of other questions; others stay as they are.

    A model then answers rightly when it finds the reference likelier than the others, without generating: chance is
    1 / 4, and the probability of the right answer is a softmax over the choices, as for any multiple choice. The
    wrong answers are drawn from the 24 of the same task that are closest in length, so that length tells nothing. What
    a question gets depends on its id, the seed and the answers of the set.

    A question for which the set has no other answer stays free.
    """
    answers: dict[str, set[str]] = {}
    for question in questions:
        if question.choices is None:
            answers.setdefault(question.task, set()).add(str(question.answer))
    by_length = {task: _ByLength(texts) for task, texts in answers.items()}
    return [
        question if question.choices is not None else _with_choices(question, by_length[question.task], seed)
        for question in questions
    ]


def _with_choices(question: Question, answers: "_ByLength", seed: int) -> Question:
    right = str(question.answer)
    generator = random.Random(f"{seed}:{question.id}")
    close = answers.closest(right)
    if not close:
        return question
    choices = [right, *generator.sample(close, min(CHOICES - 1, len(close)))]
    generator.shuffle(choices)
    return replace(question, choices=tuple(choices), answer=choices.index(right))


class _ByLength:
    """The answers of a task by their length: sorted once, so that a question costs no more in a larger set."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts: dict[int, list[str]] = {}
        for text in sorted(texts):
            self._texts.setdefault(len(text), []).append(text)
        self._lengths = sorted(self._texts)

    def closest(self, right: str) -> "_Close":
        """The other answers that are as close in length to `right` as the 24th closest, the closest first.

        Drawn from more than are needed, so that within one length it is not always the first of the alphabet.
        """
        here = self._texts[len(right)]
        groups: list[tuple[Sequence[str], Sequence[str]]] = [(_Without(here, bisect_left(here, right)), ())]
        found = len(here) - 1
        place = bisect_left(self._lengths, len(right))
        below, above = self._lengths[place - 1 :: -1] if place else [], self._lengths[place + 1 :]
        while found < _CLOSEST and (below or above):
            distances = [*(len(right) - length for length in below[:1]), *(length - len(right) for length in above[:1])]
            distance = min(distances)
            shorter = self._texts.get(len(right) - distance, ())
            longer = self._texts.get(len(right) + distance, ())
            below, above = below[bool(shorter) :], above[bool(longer) :]
            groups.append((shorter, longer))
            found += len(shorter) + len(longer)
        return _Close(groups)


class _Without(Sequence[str]):
    """A list without one of its items."""

    def __init__(self, texts: Sequence[str], left_out: int) -> None:
        self._texts, self._left_out = texts, left_out

    def __len__(self) -> int:
        return len(self._texts) - 1

    def __getitem__(self, place: Any) -> Any:
        return self._texts[place + (place >= self._left_out)]


class _Close(Sequence[str]):
    """Groups of answers behind one another, each the merge of two sorted lists; nothing is copied."""

    def __init__(self, groups: Sequence[tuple[Sequence[str], Sequence[str]]]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return sum(len(one) + len(other) for one, other in self._groups)

    def __getitem__(self, place: Any) -> Any:
        for one, other in self._groups:
            if 0 <= place < len(one) + len(other):
                return _merged(one, other, place)
            place -= len(one) + len(other)
        raise IndexError


def _merged(one: Sequence[str], other: Sequence[str], place: int) -> str:
    """Item `place` of two sorted lists with nothing in common, had they been merged."""
    low, high = max(0, place - len(other)), min(place, len(one))
    while low < high:  # how many items of `one` stand before that place
        middle = (low + high) // 2
        if one[middle] < other[place - middle - 1]:
            low = middle + 1
        else:
            high = middle
    rest = place - low
    if low < len(one) and (rest >= len(other) or one[low] < other[rest]):
        return one[low]
    return other[rest]
