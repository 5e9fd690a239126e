"""Reading questions, wording prompts, grading answers."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from drllm_adapter import DrLLMError
from drllm_adapter.tasks import Question, build_prompt, build_prompts, grade, load_questions, settled, sources_of

GOOD = {"question": "What melts?", "choices": ["ice", "fire"], "answer": 0}


def write(path: Path, *lines: Any) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a list"),
        ({"choices": ["a", "b"], "answer": 0}, "text of a question"),
        ({"question": "  ", "choices": ["a", "b"], "answer": 0}, "text of a question"),
        ({"question": "q", "choices": ["a", "b"]}, "have an answer"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": -1}, "0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "'C'"),
        ({"question": "q", "choices": ["x"] * 27, "answer": 0}, "has 27"),
        ({"question": "q", "choices": ["x"], "answer": 0}, "has 1"),
        ({"question": "q", "choices": "ab", "answer": 0}, "list of texts"),
        ({"question": "q", "choices": ["a", None], "answer": 0}, "list of texts"),
        ({"question": "q", "answer": ["a"]}, "text or a number"),
        ({"question": "q", "answer": "a", "level": 1.5}, "level"),
        ({**GOOD, "id": "same"}, "'same'"),
    ],
)
def test_a_bad_line_is_named(line: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", {**GOOD, "id": "same"}, line)
    with pytest.raises(DrLLMError) as raised:
        load_questions("jsonl", path)
    assert re.fullmatch(r"[^\n]+\.", str(raised.value))
    assert said in str(raised.value)
    assert f"{path}, line 2" in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("empty.jsonl", ""), ("blank.jsonl", "\n\n")):
        with pytest.raises(DrLLMError, match="at least one question"):
            load_questions("jsonl", write(tmp_path / name, content))
    with pytest.raises(DrLLMError, match="must exist"):
        load_questions("jsonl", str(tmp_path / "none.jsonl"))
    with pytest.raises(DrLLMError, match="must be Parquet"):
        load_questions("jsonl", write(tmp_path / "no.parquet", "text"))
    with pytest.raises(DrLLMError, match="needs a file"):
        load_questions("jsonl")
    with pytest.raises(DrLLMError, match="arc, dart, jsonl, khop"):
        load_questions("chess")
    with pytest.raises(DrLLMError, match="after the first 9"):
        load_questions("jsonl", write(tmp_path / "one.jsonl", GOOD), skip=9)
    with pytest.raises(DrLLMError, match="must be a file, but it is a folder"):
        load_questions("jsonl", str(tmp_path))
    with pytest.raises(DrLLMError, match=r"must have choices.*--task jsonl --mode free"):
        load_questions("arc", write(tmp_path / "free.jsonl", {"question": "q", "answer": "a"}))


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "marked.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a"}), encoding="utf-8-sig")
    assert [question.answer for question in load_questions("jsonl", str(path))] == ["a"]


def test_formats_of_the_hub(tmp_path: Path) -> None:
    arc = {"id": "Mercury_1", "question": "q", "choices": {"text": ["w", "x", "y"], "label": ["1", "2", "3"]},
           "answerKey": "2"}  # fmt: skip
    dart = {"query": "1+1?", "gt_ans": "2", "query_metadata": {"level": 3}}
    assert load_questions("arc", write(tmp_path / "arc.jsonl", arc)) == [
        Question("Mercury_1", "arc", "q", ("w", "x", "y"), 1)
    ]
    found = load_questions("dart", write(tmp_path / "dart.jsonl", dart))
    assert found == [Question("dart-0", "dart", "1+1?", None, "2", 3)]


def test_answers_as_index_letter_or_text(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", *({**GOOD, "answer": answer} for answer in (1, "B", "fire")))
    assert [question.answer for question in load_questions("jsonl", path)] == [1, 1, 1]


def test_skip_and_limit_keep_names(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", *({**GOOD, "question": f"{n}?"} for n in range(10)))
    part = load_questions("jsonl", path, skip=3, limit=4)
    assert part == load_questions("jsonl", path)[3:7]
    assert [question.id for question in part] == ["q-3", "q-4", "q-5", "q-6"]


def test_parquet_equals_json_lines(tmp_path: Path) -> None:
    import datasets

    lines = [{**GOOD, "id": str(n), "level": n} for n in range(5)]
    datasets.Dataset.from_list(lines).to_parquet(tmp_path / "q.parquet")
    from_lines = load_questions("jsonl", write(tmp_path / "q.jsonl", *lines))
    assert load_questions("jsonl", str(tmp_path / "q.parquet")) == from_lines


ARC = Question("a", "arc", "What melts?", ("ice", "fire", "stone"), 2)
MATH = Question("m", "dart", "1+1?", None, "2", 1)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def test_letters_with_and_without_a_chat_template() -> None:
    plain, chat = build_prompt(ARC, "letter"), build_prompt(ARC, "letter", chat_tokenizer())
    asked = "Question: What melts?\nA. ice\nB. fire\nC. stone\n"
    assert plain.text == f"{asked}Answer: The correct answer is"
    assert chat.text == f"<user>{asked}Answer with a single letter.</><assistant>"
    assert (plain.continuations, chat.continuations) == ((" A", " B", " C"), ("A", "B", "C"))
    assert (plain.templated, chat.templated) == (False, True)
    assert (plain.max_new_tokens, chat.max_new_tokens) == (2, 10)
    assert plain.answer == chat.answer == 2


def test_cloze_is_plain_text() -> None:
    for tokenizer in (None, chat_tokenizer()):
        prompt = build_prompt(ARC, "cloze", tokenizer)
        assert prompt.text == "Question: What melts?\nAnswer:"
        assert prompt.continuations == (" ice", " fire", " stone")
        assert not prompt.templated


def test_free_answers() -> None:
    plain, chat = build_prompt(MATH, "free"), build_prompt(MATH, "free", chat_tokenizer())
    assert (plain.continuations, chat.continuations) == ((" \\boxed{2}",), ("\\boxed{2}",))
    assert (chat.grader, chat.answer, chat.max_new_tokens) == ("math-verify", "2", 256)
    assert "\\boxed{}" in chat.text
    assert build_prompt(ARC, "free").continuations == (" stone",)
    assert build_prompt(ARC, "free").grader == "exact"


def test_a_ready_made_prompt_is_kept() -> None:
    ready = Question("r", "jsonl", "q", ("a", "b"), 0, prompt="Say it:")
    assert build_prompt(ready, "cloze").text == build_prompt(ready, "letter").text == "Say it:"


def test_modes_that_do_not_fit() -> None:
    with pytest.raises(DrLLMError, match="letter, cloze, contrast, free"):
        build_prompt(ARC, "essay")
    with pytest.raises(DrLLMError, match="--mode free"):
        build_prompt(MATH, "letter")


@pytest.mark.parametrize(
    ("generated", "reference", "right"),
    [
        (" Paris.\nIt is", "paris", True),
        ("the  red fox", "The red fox", True),
        ("Rome", "Paris", False),
        ("", "a", False),
    ],
)
def test_exact_grading(generated: str, reference: str, right: bool) -> None:
    assert grade("exact", generated, reference) == right


@pytest.mark.parametrize(
    ("generated", "reference", "right"),
    [
        ("so it is \\boxed{\\frac{1}{2}}", "0.5", True),
        ("\\boxed{3}", "4", False),
        ("The answer is 72.", "72", True),
        ("\\boxed{(3,4]}", "(3,4]", True),
        ("no idea", "1", False),
    ],
)
def test_mathematical_grading(generated: str, reference: str, right: bool) -> None:
    pytest.importorskip("math_verify")
    assert grade("math-verify", generated, reference) == right


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(DrLLMError, match=r"drllm-adapter\[math\]"):
        grade("math-verify", "1", "1")
    with pytest.raises(DrLLMError, match="exact, last-number"):
        grade("vibes", "1", "1")


def test_made_questions_have_no_data() -> None:
    with pytest.raises(DrLLMError, match=r"khop makes its own questions, but --data nowhere\.jsonl"):
        load_questions("khop", "nowhere.jsonl", limit=3)


def test_several_sources_make_one_list(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {**GOOD, "id": "1"}, {**GOOD, "id": "2"})
    second = write(tmp_path / "b.jsonl", {**GOOD, "id": "3"})
    both = load_questions("jsonl", f"{first},{second}")
    assert both == load_questions("jsonl", first) + load_questions("jsonl", second)
    assert [source["name"] for source in sources_of(both)] == ["a.jsonl", "b.jsonl"]
    assert [question.id for question in load_questions("jsonl", f"{first},{second}", skip=1)] == ["2", "3"]


pieces = st.lists(
    st.sampled_from(["a", "B", "ß", "é", ".", " ", "\t", "\n", "\r\n", "7", "ab", "a.b"]), max_size=8
).map("".join)


@given(begun=pieces, rest=pieces, reference=pieces)
def test_a_settled_verdict_stands_whatever_follows(begun: str, rest: str, reference: str) -> None:
    if settled("exact", begun, reference):
        assert grade("exact", begun + rest, reference) == grade("exact", begun, reference)


@pytest.mark.parametrize(
    ("begun", "reference", "known"),
    [
        ("", "4", False),
        ("\n ", "4", False),
        ("4", "4", False),
        ("4\n", "4", True),
        ("5", "4", True),
        ("The", "The answer", False),
        ("the  An", "The answer", False),
        ("The\ufffd", "The answer", False),
        ("It", "The answer", True),
    ],
)
def test_when_an_exact_verdict_is_settled(begun: str, reference: str, known: bool) -> None:
    assert settled("exact", begun, reference) is known
    assert not settled("math-verify", begun, reference)


def test_prompts_need_no_answers(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
    ]
    path = write(
        tmp_path / "prompts.jsonl",
        {"prompt": "Say ice.", "kind": "saying", "answer": ["of another", "shape"]},
        {"id": "chat", "messages": turns, "task": "chatting"},
        {"prompt": turns[1:2]},
        {"question": "What melts?", "choices": ["ice", "fire"]},
    )
    (tmp_path / "lines.txt").write_text("First.\n\n  {Second}\n")
    read = load_questions("jsonl", f"{path},{tmp_path / 'lines.txt'}", with_answers=False)
    assert [question.task for question in read] == ["saying", "chatting", "jsonl", "jsonl", "jsonl", "jsonl"]
    assert [question.answer for question in read] == [None] * 6
    assert [question.id for question in read] == [
        "prompts-0", "chat", "prompts-2", "prompts-3", "lines-4", "lines-5",
    ]  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    alone = write(tmp_path / "one.json", {"messages": turns})  # a document of one conversation, not rows of messages
    assert [question.question for question in load_questions("jsonl", alone, with_answers=False)] == ["Why?"]
    chat = build_prompts(read, "self", tokenizer)
    assert [prompt.text for prompt in chat] == [
        "<user>Say ice.",
        "<system>Be brief.<user>Hi<assistant>Hello<user>Why?",
        "<user>Hi",
        "<user>What melts?\nA. ice\nB. fire",
        "<user>First.",
        "<user>{Second}",
    ]
    plain = build_prompts(read[:1] + read[3:], "self", None)
    assert [prompt.text for prompt in plain] == ["Say ice.", "What melts?\nA. ice\nB. fire", "First.", "{Second}"]
    assert all(prompt.mode == "self" and not prompt.templated and not prompt.reference for prompt in plain)
    with pytest.raises(DrLLMError, match=r"chat template, but there is none for 'chat'"):
        build_prompts(read, "self", None)
    with pytest.raises(DrLLMError, match=r"mode free needs questions with answers.*--mode self"):
        build_prompts(read, "free", None)
    with pytest.raises(DrLLMError, match=r"line 1 must have an answer.*--mode self"):
        load_questions("jsonl", str(tmp_path / "lines.txt"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"kind": "a"}, "`prompt` or `messages`"),
        ({"messages": ["Hi"]}, "`role` and a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "`role` and a text"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "a message of the user"),
    ],
)
def test_a_bad_prompt_is_named(line: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", {"prompt": "Say ice."}, line)
    with pytest.raises(DrLLMError, match=rf"bad\.jsonl, line 2.*{said}"):
        load_questions("jsonl", path, with_answers=False)
