"""Questions of mixed sets: the same id is the same question only with the same prompt."""

from types import SimpleNamespace
from typing import Any

from drllm_adapter.workflow.train import question_names


def row(id: str, prompt: str) -> Any:
    return SimpleNamespace(id=id, prompt=prompt)


def test_files_of_one_name_keep_their_questions_apart() -> None:
    first = [row("questions-0", "What is 1 + 1?"), row("questions-1", "What is 2 + 2?")]
    second = [row("questions-0", "Who wrote it?"), row("questions-1", "What is 2 + 2?")]
    assert question_names(first) == ["questions-0", "questions-1"]
    assert question_names(first + second) == ["questions-0", "questions-1", "questions-0#2", "questions-1"]
    assert question_names(second + first) == ["questions-0", "questions-1", "questions-0#2", "questions-1"]
