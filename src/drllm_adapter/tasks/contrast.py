"""Free questions as choices: the reference answer among answers of other questions, so that likelihood alone grades."""

import random
from collections.abc import Sequence
from dataclasses import replace

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
    return [
        question if question.choices is not None else _with_choices(question, answers[question.task], seed)
        for question in questions
    ]


def _with_choices(question: Question, answers: set[str], seed: int) -> Question:
    right = str(question.answer)
    generator = random.Random(f"{seed}:{question.id}")
    others = sorted(answers - {right}, key=lambda text: (abs(len(text) - len(right)), text))
    if not others:
        return question
    # Sorted by text within one length: drawn from more than are needed, not always the first of the alphabet.
    last = len(others[min(_CLOSEST, len(others)) - 1])
    close = [text for text in others if abs(len(text) - len(right)) <= abs(last - len(right))]
    choices = [right, *generator.sample(close, min(CHOICES - 1, len(close)))]
    generator.shuffle(choices)
    return replace(question, choices=tuple(choices), answer=choices.index(right))
