"""Free questions as choices among other questions' answers."""

import random
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm_adapter import DrLLMError
from drllm_adapter.tasks import Question, as_choices, build_prompt, build_prompts


def free(answers: list[str], task: str = "gsm8k") -> list[Question]:
    return [Question(f"{task}-{n}", task, f"question {n}", None, answer) for n, answer in enumerate(answers)]


@given(st.lists(st.text("0123456789", min_size=1, max_size=4), min_size=1, max_size=30), st.integers(0, 3))
def test_the_right_answer_is_one_of_different_choices(answers: list[str], seed: int) -> None:
    asked = free(answers)
    made = as_choices(asked, seed=seed)
    for before, after in zip(asked, made, strict=True):
        if len(set(answers)) == 1:
            assert after == before
            continue
        assert after.choices is not None
        assert after.choices[int(after.answer)] == before.answer
        assert len(set(after.choices)) == len(after.choices) == min(4, len(set(answers)))
        assert set(after.choices) <= set(answers)
    assert made == as_choices(asked, seed=seed)
    # Neither the order of the questions nor those of other tasks matter.
    assert list(reversed(made)) == as_choices(list(reversed(asked)), seed=seed)
    assert made == as_choices([*asked, *free(["x"], "math")], seed=seed)[: len(made)]


def test_wrong_answers_are_of_like_length() -> None:
    answers = [str(n) for n in range(100, 160)] + [str(n) for n in range(10_000, 10_060)]
    for question in as_choices(free(answers)):
        assert question.choices is not None
        assert len({len(choice) for choice in question.choices}) == 1


def test_every_place_and_every_answer_is_used() -> None:
    made = as_choices(free([str(n) for n in range(100, 900)]))
    places = Counter(question.answer for question in made)
    assert all(abs(places[place] - 200) < 60 for place in range(4))
    assert len({choice for question in made for choice in question.choices or ()}) > 700


def test_as_a_mode() -> None:
    choice = Question("c", "arc", "Which?", ("left", "right"), 1)
    prompts = build_prompts([*free(["1", "2", "3", "4", "5"]), choice], "contrast")
    assert [len(prompt.continuations) for prompt in prompts] == [4] * 5 + [2]
    assert prompts[0].continuations[int(prompts[0].answer)] == " 1"
    assert prompts[-1] == build_prompt(choice, "cloze")
    with pytest.raises(DrLLMError, match="other questions"):
        build_prompt(choice, "contrast")


def sorted_anew(questions: list[Question], seed: int) -> list[Question]:
    """The same choices by sorting all answers for every question."""
    found = []
    for question in questions:
        right = str(question.answer)
        others = {str(other.answer) for other in questions if other.task == question.task} - {right}
        order = sorted(others, key=lambda text: (abs(len(text) - len(right)), text))
        if not order:
            found.append(question)
            continue
        last = len(order[min(24, len(order)) - 1])
        close = [text for text in order if abs(len(text) - len(right)) <= abs(last - len(right))]
        generator = random.Random(f"{seed}:{question.id}")
        choices = [right, *generator.sample(close, min(3, len(close)))]
        generator.shuffle(choices)
        found.append(replace(question, choices=tuple(choices), answer=choices.index(right)))
    return found


@given(st.lists(st.text("ab1", min_size=1, max_size=7), min_size=1, max_size=80), st.integers(0, 3))
def test_the_choices_are_those_of_a_plain_sort(answers: list[str], seed: int) -> None:
    assert as_choices(free(answers), seed) == sorted_anew(free(answers), seed)


def test_a_question_costs_no_more_in_a_larger_set() -> None:
    def lines_run(count: int) -> int:
        asked = free([str(number * 7919 % 10**6) for number in range(count)])
        lines = 0

        def trace(frame: object, event: str, argument: object) -> object:
            nonlocal lines
            lines += event == "line"
            return trace

        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            as_choices(asked)
        finally:
            sys.settrace(None)
        return lines // count

    assert lines_run(4000) < 1.3 * lines_run(500)
