"""Questions as people have them: whatever the format, encoding, compression and types, the same questions."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm_adapter import DrLLMError
from drllm_adapter.tasks import Question, load_questions
from drllm_adapter.tasks.values import nested, plain, text_of

ROWS = [
    {"id": "a", "question": 'Wie heißt die Hauptstadt von "Österreich"?\nSag es.', "choices": ["Köln", "Wien", "Graz"],
     "answer": "Wien", "level": 3},
    {"id": "b", "question": "大きい\u2028数?", "choices": ["1.5", "x, y", "z"], "answer": "z", "level": 1},
]  # fmt: skip
WANTED = [Question(r["id"], "jsonl", r["question"], tuple(r["choices"]), r["choices"].index(r["answer"]), r["level"])
          for r in ROWS]  # fmt: skip
FRAME = pd.DataFrame(ROWS)


def lines(**options: Any) -> str:
    return "".join(json.dumps(row, **options) + "\n" for row in ROWS)


def table(separator: str) -> str:
    return FRAME.to_csv(sep=separator, index=False)


def parquet() -> bytes:
    content = io.BytesIO()
    FRAME.to_parquet(content)
    return content.getvalue()


def arrow() -> bytes:
    content = io.BytesIO()
    made = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(content, made.schema) as file:
        file.write_table(made)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", lines()),
        ("q.jsonl", lines(ensure_ascii=False)),
        ("q.json", "\n\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("q.json", json.dumps(ROWS)),
        ("q.json", json.dumps(ROWS, indent=1, ensure_ascii=False)),
        ("q.json", json.dumps({"version": 1, "data": ROWS})),
        ("q.json", json.dumps({"rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)]})),
        ("q.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]})),
        *[("q.json", FRAME.to_json(orient=orient)) for orient in ("columns", "index", "records", "split", "table")],
        ("q.csv", table(",")),
        ("q.csv", table(";")),
        ("q.tsv", table("\t")),
        ("q.txt", table(",")),
        ("q.parquet", parquet()),
        ("q.arrow", arrow()),
    ],
)
def test_one_set_in_every_form(name: str, content: str | bytes, tmp_path: Path) -> None:
    path, packed = tmp_path / name, tmp_path / f"{name}.gz"  # what it is counts, not what it is called
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        data = content if isinstance(content, bytes) else content.encode(encoding)
        path.write_bytes(data)
        assert load_questions("jsonl", str(path)) == WANTED, encoding
        for pack in (gzip.compress, bz2.compress, lzma.compress):
            packed.write_bytes(pack(data))
            assert load_questions("jsonl", str(packed)) == WANTED, pack


def test_rows_in_memory_and_folders_of_datasets(tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "several")
    for data in (ROWS, FRAME, made, made.with_format("numpy"), str(tmp_path / "one")):
        assert load_questions("jsonl", data) == WANTED
    assert load_questions("jsonl", str(tmp_path / "several"), split="test") == WANTED
    (tmp_path / "downloaded" / "data").mkdir(parents=True)
    made.to_parquet(tmp_path / "downloaded" / "data" / "test-00000-of-00001.parquet")
    assert load_questions("jsonl", str(tmp_path / "downloaded"), split="test") == WANTED
    with pytest.raises(DrLLMError, match="a split 'train', but it has test"):
        load_questions("jsonl", str(tmp_path / "downloaded"))
    with pytest.raises(DrLLMError, match="a split 'train', but it has test"):
        load_questions("jsonl", str(tmp_path / "several"))


def test_answers_of_a_class_column(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"question": datasets.Value("string"), "choices": datasets.List(datasets.Value("string")),
         "answer": datasets.ClassLabel(names=["A", "B", "C", "D"])}
    )  # fmt: skip
    rows = [{"question": "1 + 2?", "choices": ["1", "2", "3", "4"], "answer": 2}]  # MMLU: the third, not the text "2"
    made = datasets.Dataset.from_list(rows, features=features)
    made.to_parquet(tmp_path / "q.parquet")
    for data in (made, str(tmp_path / "q.parquet")):
        assert [question.answer for question in load_questions("jsonl", data)] == [2]


def test_prompts_that_begin_with_a_bracket(tmp_path: Path) -> None:
    for prompts in (["[INST] hi [/INST]", "Hello"], ["{x} is a set", "[1]"]):
        (tmp_path / "p.txt").write_text("\n".join(prompts))
        found = load_questions("jsonl", str(tmp_path / "p.txt"), with_answers=False)
        assert [question.question for question in found] == prompts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.jsonl", lines(ensure_ascii=False).encode("cp1252", "ignore"), "line 1 must be UTF-8"),
        ("q.jsonl", (json.dumps(ROWS[0]) + "\n" + '{"question": "ß?"}').encode("latin-1"), "line 2 must be UTF-8"),
        ("q.csv", table(",").replace("大きい", "").encode("cp1252", "ignore"), "line 2 must be UTF-8"),
        ("q.jsonl", lines().encode("utf-16")[:-1], "must be text in UTF-16"),
        ("q.xlsx", b"PK\x03\x04....", "a spreadsheet; unpack it, or save the sheet as CSV"),
        ("q.jsonl.gz", gzip.compress(lines().encode())[:-9], "reading it failed"),
        ("q.md", b"hello\nworld", "JSON lines, JSON, CSV, TSV, Parquet or Arrow, but line 1"),
        ("q.json", b'[\n {"question": "q", "answer": "a"},\n\n {"question" "q"}]', "line 4 must be JSON"),
        ("q.json", b'[\n {"question": "q", "answer": "a"},\n\n {"question": ""}]', "line 4 must have the text"),
        ("q.csv", b'question,answer\n"two\nlines",x\nq,1,2\n', "line 4 must have a cell for each of the 2 columns"),
        ("q.csv", b"question,answer\nq,\n", "line 2 must have an answer"),
        ("q.csv", b"a,b\nq,\n", "line 2 must have the text of a question"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DrLLMError) as raised:
        load_questions("jsonl", str(tmp_path / name))
    assert said in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)


CHOICES = ["red", "green", "blue"]


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": CHOICES, "answer": 1},
        {"choices": CHOICES, "answer": 1.0},
        {"choices": CHOICES, "answer": "1"},
        {"choices": CHOICES, "answer": np.int64(1)},
        {"choices": np.array(CHOICES, dtype=object), "answer": "B"},
        {"choices": CHOICES, "answer": "(b)"},
        {"choices": CHOICES, "answer": "B."},
        {"choices": CHOICES, "answer": " green "},
        {"choices": CHOICES, "answer": "Green", "answer_index": 1},
        {"choices": CHOICES, "answer": None, "answerKey": "B"},
        {"choices": CHOICES, "answer": float("nan"), "answerKey": "B"},
        {"choices": {"text": CHOICES, "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"choices": {"text": CHOICES, "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"choices": {"text": CHOICES, "label": [1, 2, 3]}, "answerKey": 2},
        {"choices": {"text": CHOICES, "label": [1.0, 2.0, 3.0]}, "answerKey": 2.0},
        {"choices": {"text": CHOICES, "label": ["0", "1", "2"]}, "answerKey": 1},
        {"choices": {"text": CHOICES, "label": ["3", "1", "2"]}, "answerKey": 1},
        {"choices": {"text": CHOICES, "label": ["A", "B", "C"]}, "answerKey": "1"},
        {"choices": {"text": np.array(CHOICES), "label": np.array(["A", "B", "C"])}, "answerKey": "B"},
        {"choices": [{"text": text, "label": label} for label, text in zip("ABC", CHOICES, strict=True)],
         "answerKey": "B"},
        {"question": {"stem": "q", "choices": [{"text": text, "label": label}
                                               for label, text in zip("ABC", CHOICES, strict=True)]}, "answerKey": "B"},
        {"question": str({"stem": "q", "choices": [{"text": text, "label": label}
                                                   for label, text in zip("ABC", CHOICES, strict=True)]}),
         "answerKey": "B"},
        {"choices": str(CHOICES), "answer": 1},
        {"choices": json.dumps(CHOICES), "answer": 1},
        {"choices": str(np.array(CHOICES)), "answer": 1},
        {"choices": str({"text": np.array(CHOICES, dtype=object), "label": np.array(["A", "B", "C"], dtype=object)}),
         "answerKey": "B"},
        {"choices": {"A": "red", "B": "green", "C": "blue"}, "answer": "B"},
        {"choices": [{"key": key, "value": text} for key, text in zip("ABC", CHOICES, strict=True)], "answer": "B"},
        {"choices": list(zip("ABC", CHOICES, strict=True)), "answer": "B"},
        {"A": "red", "B": "green", "C": "blue", "D": None, "answer": "B"},
        {"option1": "red", "option2": "green", "option3": "blue", "answer": "2"},
        {"options": CHOICES, "answer": "B"},
    ],
)  # fmt: skip
def test_one_question_of_many_types(fields: dict[str, Any]) -> None:
    assert load_questions("jsonl", [{"question": "q", **fields}]) == [
        Question("rows-0", "jsonl", "q", ("red", "green", "blue"), 1)
    ]


@pytest.mark.parametrize("level", [3, 3.0, "3", "3.0", "Level 3", np.float64(3), np.int32(3)])
def test_levels(level: Any) -> None:
    asked = [{"question": "q", "answer": "a", "level": level},
             {"query": "r", "gt_ans": "a", "query_metadata": {"level": level}},
             {"query": "s", "gt_ans": "a", "query_metadata": str({"level": plain(level)})}]  # fmt: skip
    assert [question.level for question in load_questions("jsonl", asked)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("choices", "answer", "both"),
    [
        (["1", "2", "3"], "2", ("'2'", "'3'")),
        ([1, 2, 3], 1, ("'1'", "'2'")),
        (["B", "A", "C"], "A", ("'B'", "'A'")),
        (["0", "2", "1"], 1.0, ("'2'", "'1'")),
    ],
)
def test_two_readings_are_refused_naming_both(choices: list[Any], answer: Any, both: tuple[str, str]) -> None:
    with pytest.raises(DrLLMError, match="in one way") as raised:
        load_questions("jsonl", [{"question": "q", "choices": choices, "answer": answer}])
    assert all(text in str(raised.value) for text in both)
    assert "row 1" in str(raised.value)


def test_other_rows_tell_which_reading_is_meant() -> None:
    open_row = {"question": "q", "choices": [1, 2, 3], "answer": 1}
    for other, right in (({"choices": [4, 5, 6], "answer": 0}, 1), ({"choices": [4, 5, 6], "answer": 3}, 0),
                         ({"choices": [7, 8, 9], "answer": 8}, 0)):  # fmt: skip
        for rows in ([open_row, {"question": "r", **other}], [{"question": "r", **other}, open_row]):
            assert {q.question: q.answer for q in load_questions("jsonl", rows)}["q"] == right
    # Positions count from 0 unless some can only count from 1; some of both are a mistake.
    ones = [{"question": "q", "choices": CHOICES, "answer": answer} for answer in (1, 2)]
    last, first = ({"question": "r", "choices": CHOICES, "answer": answer} for answer in (3, 0))
    assert [question.answer for question in load_questions("jsonl", ones)] == [1, 2]
    assert [question.answer for question in load_questions("jsonl", [*ones, last])] == [0, 1, 2]
    with pytest.raises(DrLLMError, match="row 1 must have an answer that is an index from 0 to 2"):
        load_questions("jsonl", [last])
    with pytest.raises(DrLLMError, match="row 3 must have an answer that is an index from 0 to 2"):
        load_questions("jsonl", [*ones, last, first])


def test_fields_that_disagree_are_named() -> None:
    with pytest.raises(DrLLMError, match=r"`answer` is 'A' and `answerKey` is 'B'"):
        load_questions("jsonl", [{"question": "q", "choices": CHOICES, "answer": "A", "answerKey": "B"}])
    with pytest.raises(DrLLMError, match=r"`answer` is '1' and `gt_ans` is '2'"):
        load_questions("jsonl", [{"question": "q", "answer": 1, "gt_ans": "2"}])
    with pytest.raises(DrLLMError, match="a label of its own"):
        load_questions(
            "jsonl", [{"question": "q", "choices": {"text": CHOICES, "label": ["A", "A", "B"]}, "answer": 0}]
        )


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (72, "72"),
        (72.0, "72"),
        (0.5, "0.5"),
        (-3.0, "-3"),
        (np.float32(72), "72"),
        ("72", "72"),
        ("Six times <<6*12=72>>72.\n#### 72", "72"),
        ("so\n#### 1,234,567", "1234567"),
        ("#### 1,2", "1,2"),
        ("Thus \\boxed{\\frac{1}{2}} and done.", "\\frac{1}{2}"),
        ("\\boxed{1} or rather $\\boxed{x^{2}}$", "x^{2}"),
        ("Paris", "Paris"),
    ],
)
def test_reference_answers_as_sets_publish_them(answer: Any, reference: str) -> None:
    for fields in ({"answer": answer}, {"solution": answer}):
        assert load_questions("jsonl", [{"question": "q", **fields}])[0].answer == reference


def test_a_column_with_a_gap_keeps_whole_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"question": ["12 times 6?", "unanswered"], "answer": [72, None], "level": [3, None]})
    frame.dropna().to_csv(tmp_path / "q.csv")
    frame.dropna().to_json(tmp_path / "q.jsonl", orient="records", lines=True)
    for name in ("q.csv", "q.jsonl"):
        assert load_questions("jsonl", str(tmp_path / name)) == [Question("q-0", "jsonl", "12 times 6?", None, "72", 3)]


@pytest.mark.parametrize("field", ["question", "id", "answer", "prompt"])
def test_half_a_character_is_named(field: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", field: "What is \ud83d?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DrLLMError, match=r"q\.jsonl, line 2 must be text that can be encoded, but character 9"):
        load_questions("jsonl", str(path))


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    bad: list[str] = []
    rows = [{"question": "q", "answer": "a"}, {"question": "q"}, {"question": "q", "answer": "\ud83d"},
            {"question": "q", "choices": [1, 2, 3], "answer": 1}]  # fmt: skip
    assert [question.id for question in load_questions("jsonl", rows, skip_bad=bad.append)] == ["rows-0"]
    assert [sentence.split(" must")[0] for sentence in bad] == ["row 2", "row 3", "row 4"]
    lines = '{"question": "q", "answer": "a"}\n{"question"\n{"question": "r", "answer": "a"}'
    for name, content in (("q.jsonl", lines), ("q.csv", "question,answer\nq,a\nq,a,b\nr,a\n")):
        (tmp_path / name).write_text(content)
        found = load_questions("jsonl", str(tmp_path / name), skip_bad=bad.append)
        assert [(question.id, question.question) for question in found] == [("q-0", "q"), ("q-2", "r")]
    with pytest.raises(DrLLMError, match="beside the 1 left out"):
        load_questions("jsonl", rows[1:2], skip_bad=bad.append)


def test_names_with_blanks_and_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b c.jsonl", "d,e.jsonl"):
        Path(name).write_text(json.dumps({"question": name, "answer": "a"}))
    assert [q.question for q in load_questions("jsonl", " a.jsonl , b c.jsonl,")] == ["a.jsonl", "b c.jsonl"]
    assert [q.question for q in load_questions("jsonl", "d,e.jsonl")] == ["d,e.jsonl"]
    for missing in ("no.csv", "./no", "/no/where", "no.jsonl.gz"):
        with pytest.raises(DrLLMError, match="must exist, but it does not"):
            load_questions("jsonl", missing)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\nnot read")
    assert len(load_questions("jsonl", str(tmp_path / "q.jsonl"), limit=1)) == 1


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab'\"\\ ,[]{}\n", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xy", max_size=2), inner, max_size=3),
)


@given(st.lists(values, max_size=4) | st.dictionaries(st.text("xy", max_size=2), values, max_size=3))
def test_what_became_text_is_what_it_was(value: Any) -> None:
    assert nested(str(value)) == value == nested(json.dumps(value))


@given(st.lists(st.text("ab' \"", max_size=6), min_size=2, max_size=9))
def test_numpy_arrays_that_became_text(texts: list[str]) -> None:
    for array in (np.array(texts), np.array(texts, dtype=object)):
        assert nested(str(array)) == texts == nested(repr(array.astype(object)))


@given(st.integers(-(10**15), 10**15))
def test_whole_numbers_are_the_same_in_every_type(number: int) -> None:
    assert text_of(number) == text_of(float(number)) == text_of(plain(np.int64(number))) == str(number)


def test_parquet_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pa.table({"question": [f"q{n}" for n in range(5000)], "answer": ["a"] * 5000})
    pq.write_table(made, tmp_path / "q.parquet")
    seen: list[int] = []
    original = pa.RecordBatch.to_pylist
    wrapped = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches",
        lambda self, size: (seen.append(batch.num_rows) or batch for batch in wrapped(self, size)),
    )  # fmt: skip
    assert original is pa.RecordBatch.to_pylist
    assert len(load_questions("jsonl", str(tmp_path / "q.parquet"), limit=10)) == 10
    assert sum(seen) <= 1024
