"""What a search and an evaluation say of questions that cannot be asked, and of a base that answers nothing."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from commands import command

from drllm_adapter import DrLLMError
from drllm_adapter.cli.generate import _prompt_text
from drllm_adapter.demo import BASE
from drllm_adapter.search import SearchConfig
from drllm_adapter.supervision import read_rows
from drllm_adapter.tasks import Prompt, load_questions
from drllm_adapter.workflow import search_paths
from drllm_adapter.workflow.chance import chance_sentence

GOOD = load_questions("khop", limit=3)
LABELS = "ABCDEFGH"
CONFIG = SearchConfig(simulations=2)


def asked(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    rows: list[Any] = [
        {"id": q.id, "task": "khop", "question": q.question, "answer": LABELS[int(q.answer or 0)],
         "choices": {"text": q.choices, "label": list(LABELS)}}
        for q in GOOD
    ]  # fmt: skip
    rows.insert(1, {"id": "long", "question": "a " * 3000, "choices": ["a", "b"], "answer": 0})
    rows.insert(2, {"question": "no answer"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_overlong_question_is_named_before_anything_is_written(tmp_path: Path) -> None:
    questions = load_questions("jsonl", str(asked(tmp_path)), skip_bad=lambda _: None)
    with pytest.raises(DrLLMError, match=r"^question 'long' \(.*q\.jsonl, line 2\): a prompt with its answer must fit"):
        search_paths(str(BASE), questions, tmp_path / "set", mode="cloze", config=CONFIG, dtype="float32")
    assert not (tmp_path / "set").exists()


def test_bad_questions_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ["search", BASE, "--data", asked(tmp_path), "--task", "jsonl", "--mode", "cloze", "--simulations", 2,
              "--dtype", "float32", "--output", tmp_path / "set"]  # fmt: skip
    assert command(*search) == 2
    assert "q.jsonl, line 3 must have an answer" in capsys.readouterr().err
    assert command(*search, "--skip-bad") == 0
    said = capsys.readouterr().out
    assert said.count("1 questions that cannot be asked are left out; the first: ") == 2
    assert "line 3 must have an answer" in said
    assert "question 'long'" in said
    assert {row.id for row in read_rows(tmp_path / "set")} == {question.id for question in GOOD}


def test_a_base_that_answers_nothing_is_told_what_was_compared(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": GOOD[0].question, "answer": "no such word"}))
    with pytest.warns(
        UserWarning, match=r"answered none of the 1 question.* which the grader exact compared with 'no s"
    ):
        search_paths(str(BASE), load_questions("jsonl", str(path)), tmp_path / "set", mode="free", config=CONFIG,
                     dtype="float32", max_new_tokens=4)  # fmt: skip


def choices(count: int) -> list[Prompt]:
    return [Prompt("q", False, (" a", " b", " c", " d"), 0, "cloze", 1)] * count


def test_guessing_is_told_from_answering() -> None:
    def said(prompt: Prompt) -> str:
        return ""

    assert "cannot be told from guessing (25.0" in (chance_sentence(choices(100), 33, said) or "")
    assert chance_sentence(choices(100), 34, said) is None
    assert "nothing that routers could keep" in (chance_sentence(choices(100), 0, said) or "")
    free = [Prompt("q", False, (" a",), "a", "free", 1)]
    assert chance_sentence(free, 1, said) is None


@pytest.mark.parametrize(("content", "line"), [(b"caf\xe9?\n", 1), (b"a\n\xff\xfe", 2)])
def test_bytes_on_standard_input(content: bytes, line: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    with pytest.raises(DrLLMError, match=f"standard input, line {line} must be UTF-8"):
        _prompt_text("-", None)


def test_prompts_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Grüße\n", encoding="utf-16")
    assert _prompt_text(None, tmp_path / "prompt.txt") == "Grüße"
    with pytest.raises(DrLLMError, match="half a character"):
        _prompt_text("caf\udce9", None)
