"""Graders: what each calls right, when nothing can change that any more, and which goes with which reference."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm_adapter import DrLLMError
from drllm_adapter.tasks import GRADERS, Question, build_prompt, build_prompts, grade, grader_of, settled
from drllm_adapter.tasks.grading import grader_for


@pytest.mark.parametrize(
    ("grader", "generated", "reference", "right"),
    [
        ("exact", "72", "72.0", True),
        ("exact", "1,234.\nNext", "1234", True),
        ("exact", "$5", "5", True),
        ("exact", "72 eggs", "72", False),
        ("exact", "The answer is 72.", "72", False),
        ("last-number", "Six boxes of 12 are 72 eggs.", "72", True),
        ("last-number", "12 * 6 = 72", "$72.00", True),
        ("last-number", "72 eggs in 6 boxes", "72", False),
        ("last-number", "so\n#### 72\n\nQuestion 2", "72", True),
        ("last-number", "\\boxed{72} as 6 * 12", "72 eggs", True),
        ("last-number", "1,234,567", "1234567", True),
        ("last-number", "It fell to -3", "-3", True),
        ("last-number", "10-3", "3", True),
        ("last-number", "x72 CO2", "2", False),
        ("last-number", "none", "0", False),
        ("contains", "It is Paris, in France.", "paris", True),
        ("contains", "Parisians", "Paris", False),
        ("contains", "172", "72", False),
        ("contains", "72.5", "72", False),
        ("contains", "72. So", "72", True),
        ("regex:answer is (\\S+)", "The answer is 72. I said.", "72", True),
        ("regex:answer is (\\S+)", "72", "72", False),
        ("regex:[A-D]", "I say C", "c", True),
    ],
)
def test_what_is_right(grader: str, generated: str, reference: str, right: bool) -> None:
    assert grade(grader, generated, reference) is right


pieces = st.lists(st.sampled_from(["7", "2", "0", ".", ",", "-", "$", " ", "\n", "a", "####", "%"]), max_size=7).map(
    "".join
)


@given(begun=pieces, rest=pieces, reference=pieces, name=st.sampled_from(["exact", "contains", "last-number"]))
def test_a_settled_verdict_stands_whatever_follows(begun: str, rest: str, reference: str, name: str) -> None:
    if settled(name, begun, reference):
        assert grade(name, begun + rest, reference) == grade(name, begun, reference)


def test_verdicts_are_settled_early() -> None:
    assert settled("exact", "73", "72")
    assert not settled("exact", "7", "72")
    assert not settled("exact", "1,", "1234")
    assert settled("contains", "It is Paris, of", "Paris")
    assert not settled("contains", "72", "72")


@pytest.mark.parametrize(
    ("reference", "grader"),
    [
        ("72", "last-number"), ("1,234", "last-number"), ("$18.50", "last-number"), ("-5", "last-number"),
        ("72 eggs", "last-number"), ("5km", "last-number"), ("50%", "last-number"),
        ("\\frac{1}{2}", "math-verify"), ("1/2", "math-verify"), ("x^2", "math-verify"), ("2x", "math-verify"),
        ("x = 3", "math-verify"), ("Paris", "exact"), ("3 Doors Down", "exact"), ("10:30", "exact"),
        ("1969-07-20", "exact"), ("a", "exact"), ("rock + roll", "exact"), ("yes", "exact"),
    ],
)  # fmt: skip
def test_the_grader_that_goes_with_a_reference(reference: str, grader: str) -> None:
    assert grader_for(reference) == grader
    prompt = build_prompt(Question("q", "jsonl", "q", None, reference), "free")
    assert prompt.grader == grader
    assert prompt.max_new_tokens == (64 if grader == "exact" else 256)


@given(st.text(min_size=1, max_size=30).filter(str.strip))
def test_a_reference_is_refused_or_can_be_answered(reference: str) -> None:
    """By its own words: a search in which no answer could be right never begins."""
    try:
        prompt = build_prompt(Question("q", "jsonl", "q", None, reference), "free")
    except DrLLMError:
        return
    said = f"\\boxed{{{reference}}}" if prompt.grader == "math-verify" else reference
    assert grade(prompt.grader, said, reference)


def test_references_that_no_answer_can_match_are_refused() -> None:
    rationale = Question("q-3", "jsonl", "q", None, "First this.\nThen 72 that.", where="q.jsonl, line 4")
    with pytest.raises(DrLLMError, match=r"question 'q-3' \(q\.jsonl, line 4\) must be one that the grader exact"):
        build_prompt(rationale, "free")
    assert build_prompt(rationale, "free", grader="contains").grader == "contains"
    with pytest.raises(DrLLMError, match="the grader last-number can find right, but 'Paris' is none"):
        build_prompt(Question("q", "jsonl", "q", None, "Paris"), "free", grader="last-number")
    long = "a long answer " * 30
    assert build_prompt(Question("q", "jsonl", "q", None, long), "free").max_new_tokens >= len(long)


def test_a_base_model_that_goes_on_with_the_next_question() -> None:
    prompt = build_prompt(Question("q", "jsonl", "6 * 12?", None, "72"), "free")
    said = " 72 eggs.\nQuestion: 6 * 7?\nAnswer: 42"
    assert prompt.answer_in(said) == " 72 eggs."
    assert grade(prompt.grader, prompt.answer_in(said), "72")


def test_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def same_length(generated, reference):\n    return len(generated) == len(reference)\n"
        "def broken(generated, reference):\n    return 1 / 0\n"
    )
    name = f"{tmp_path / 'mine.py'}:same_length"
    assert grade(name, "Rome", "Bonn")
    assert not grade(name, "Rome", "Paris")
    monkeypatch.syspath_prepend(tmp_path)
    assert grade("mine:same_length", "Rome", "Bonn")
    prompts = build_prompts([Question("q", "jsonl", "q", None, "two\nlines")], "free", grader=name)
    assert (prompts[0].grader, prompts[0].max_new_tokens) == (name, 256)
    with pytest.raises(DrLLMError, match="ZeroDivisionError"):
        grade(f"{tmp_path / 'mine.py'}:broken", "Rome", "Bonn")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vibes", "must be one of exact, last-number, contains, math-verify, regex"),
        ("regex", "written regex:PATTERN"),
        ("regex:(", "regular expression"),
        ("exact:x", "stand alone"),
        ("no.py:grade", "FileNotFoundError"),
        ("json:no", "AttributeError"),
    ],
)
def test_what_is_no_grader_is_named(name: str, said: str) -> None:
    with pytest.raises(DrLLMError) as raised:
        grader_of(name)
    assert said in str(raised.value)


def test_the_help_names_every_grader() -> None:
    assert set(GRADERS) == {"exact", "last-number", "contains", "math-verify", "regex"}
    assert all(f"{name}: " in GRADERS.help() for name in GRADERS)
