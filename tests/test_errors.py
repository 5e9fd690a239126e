"""How our sentences quote the errors of libraries: short, and never failing themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drllm_adapter import DrLLMError
from drllm_adapter.errors import first_sentence
from drllm_adapter.hub import cards
from drllm_adapter.supervision import rows
from drllm_adapter.tasks import load_questions


@pytest.mark.parametrize(
    ("error", "said", "with_kind"),
    [
        (OSError("no such file"), "no such file", "OSError: no such file"),
        (ValueError("The file is cut. Get it again.\nAt line 3."), "The file is cut", "ValueError: The file is cut"),
        (ValueError("\n  version 1.5 is too old:\n"), "version 1.5 is too old", "ValueError: version 1.5 is too old"),
        (KeyError(), "KeyError", "KeyError"),
        (pa.ArrowInvalid(" \n "), "ArrowInvalid", "ArrowInvalid"),
        (RuntimeError("..."), "RuntimeError", "RuntimeError"),
    ],
)
def test_the_first_sentence_by_hand(error: Exception, said: str, with_kind: str) -> None:
    assert first_sentence(error) == said
    assert first_sentence(error, with_kind=True) == with_kind


@given(st.text())
@example("x" * 500)
def test_whatever_is_said_becomes_part_of_one_line(text: str) -> None:
    said = first_sentence(ValueError(text))
    assert 0 < len(said) <= 200
    assert said.splitlines() == [said]
    assert said in text or said == "ValueError"


def fail(*_: Any, **__: Any) -> Any:
    raise pa.ArrowException


def damaged_rows(folder: Path) -> Any:
    return rows.read_search_info(folder)


def damaged_questions(folder: Path) -> Any:
    return load_questions("jsonl", str(folder / "train.parquet"))


@pytest.mark.parametrize("read", [damaged_rows, damaged_questions])
def test_an_error_without_a_message_is_named(
    read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.parquet").touch()
    monkeypatch.setattr(pq, "read_table", fail)
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(DrLLMError, match=r"failed \(ArrowException\)"):
        read(tmp_path)


def test_a_card_whose_front_matter_fails_without_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards.ModelCard, "__init__", fail)
    with pytest.raises(DrLLMError, match=r"failed \(ArrowException\)"):
        cards._parsed(cards.ModelCard, "old", tmp_path / "README.md")
