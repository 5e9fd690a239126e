"""Free questions as choices: the reference answer among answers of other questions, so that likelihood alone grades."""

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

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
    answers: dict[str, dict[int, list[str]]] = {}
    for task, text in sorted({(item.task, str(item.answer)) for item in questions if item.choices is None}):
        answers.setdefault(task, {}).setdefault(len(text), []).append(text)

    @cache
    def close(task: str, length: int) -> list[str]:
        return _closest(answers[task], length)

    def with_choices(question: Question) -> Question:
        right = str(question.answer)
        place, others = bisect_left(answers[question.task][len(right)], right), close(question.task, len(right))
        generator = random.Random(f"{seed}:{question.id}")
        # Places in the list without the right answer, which stands among those of its own length.
        drawn = generator.sample(range(len(others) - 1), min(CHOICES - 1, len(others) - 1))
        if not drawn:
            return question
        choices = [right, *(others[other + (other >= place)] for other in drawn)]
        generator.shuffle(choices)
        return replace(question, choices=tuple(choices), answer=choices.index(right))

    return [question if question.choices is not None else with_choices(question) for question in questions]


def _closest(answers: dict[int, list[str]], length: int) -> list[str]:
    """The answers of this length, then those that are as close to it as the 24th closest other one, closest first.

    More than are needed, so that within one length it is not always the first of the alphabet that is drawn from.

    Args:
        answers: by length, each list sorted.
    """
    found = list(answers[length])
    for distance in sorted({abs(other - length) for other in answers} - {0}):
        if len(found) > _CLOSEST:
            break
        found += sorted([*answers.get(length - distance, ()), *answers.get(length + distance, ())])
    return found
