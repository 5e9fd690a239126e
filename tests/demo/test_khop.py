"""The k-hop questions are right, balanced and reproducible; every word is one token."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import drllm_adapter.demo
from drllm_adapter.demo import khop

BASE = Path(drllm_adapter.demo.__file__).parent / "base"


def walk(question: str) -> str:
    """Follow the arrows of the text, one at a time."""
    words = question.split(" ")
    mark = words.index("from")
    arrows = dict(word.split(">") for word in words[:mark])
    letter, count, last = words[mark + 1 :]
    assert last == "hops:"
    for _ in range(int(count)):
        letter = arrows[letter]
    return letter


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(BASE, local_files_only=True)


def test_answers_are_where_the_arrows_lead() -> None:
    for question in khop.generate(500, seed=1):
        assert question["choices"] == list("abcdefgh")
        assert question["choices"][question["answer"]] == walk(question["question"])


def test_arrows_form_one_cycle() -> None:
    for question in khop.generate(100, seed=2):
        words = question["question"].split(" ")
        arrows = dict(word.split(">") for word in words[: words.index("from")])
        assert sorted(arrows) == sorted(arrows.values()) == list(khop.LETTERS)
        letter, seen = "a", set()
        while letter not in seen:
            seen.add(letter)
            letter = arrows[letter]
        assert len(seen) == len(khop.LETTERS)


def test_same_seed_same_questions_and_longer_lists_continue() -> None:
    assert khop.generate(60, seed=3) == khop.generate(60, seed=3)
    assert khop.generate(60, seed=3)[:20] == khop.generate(20, seed=3)


def test_seeds_do_not_share_questions() -> None:
    first, second = khop.generate(2000, seed=4), khop.generate(2000, seed=5)
    assert not {q["question"] for q in first} & {q["question"] for q in second}
    assert len({q["id"] for q in first + second}) == 4000
    assert first[7]["id"] == "khop-4-7"


@pytest.mark.parametrize(
    ("count", "hops"),
    [(700, khop.HOPS), (100, (2, 5)), (10, (1, 2, 3)), (5, (4,)), (0, (1,))],
)
def test_levels_are_balanced(count: int, hops: tuple[int, ...]) -> None:
    questions = khop.generate(count, 6, hops)
    levels = Counter(q["level"] for q in questions)
    assert len(questions) == count
    assert set(levels) <= set(hops)
    assert max((levels[k] for k in hops), default=0) - min((levels[k] for k in hops), default=0) <= 1
    assert all(q["question"].split(" ")[-2] == str(q["level"]) for q in questions)


def test_answers_and_starts_are_spread_over_the_letters() -> None:
    questions = khop.generate(4000, seed=7)
    for counts in (
        Counter(q["answer"] for q in questions),
        Counter(q["question"].split(" ")[-3] for q in questions),
    ):
        assert len(counts) == len(khop.LETTERS)
        assert all(400 < number < 600 for number in counts.values())


@pytest.mark.parametrize("hops", [(), (0,), (8,), (1, -1)])
def test_impossible_hops_are_refused(hops: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Hops must be numbers from 1 to 7"):
        khop.generate(1, 0, hops)


def test_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, found -1"):
        khop.generate(-1, 0)


def test_tokenizer_gives_one_token_per_word(tokenizer: Any) -> None:
    vocabulary = khop.vocabulary()
    assert tokenizer.convert_tokens_to_ids(vocabulary) == list(range(len(vocabulary)))
    for question in khop.generate(50, seed=8):
        ids = tokenizer(question["question"])["input_ids"]
        assert [vocabulary[number] for number in ids] == question["question"].split(" ")
        assert tokenizer.unk_token_id not in ids


def test_answer_is_one_token_wherever_it_stands(tokenizer: Any) -> None:
    prompt = khop.generate(1, seed=9)[0]["question"]
    for letter in khop.LETTERS:
        alone = tokenizer(letter)["input_ids"]
        assert len(alone) == 1
        assert tokenizer(" " + letter)["input_ids"] == alone
        assert tokenizer(f"{prompt} {letter}")["input_ids"] == tokenizer(prompt)["input_ids"] + alone


def test_base_answers_and_stops(tokenizer: Any, recwarn: pytest.WarningsRecorder) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True)
    questions = khop.generate(60, 10, (1, 2, 3))
    inputs = tokenizer([q["question"] for q in questions], return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    right = sum(text == q["choices"][q["answer"]] for text, q in zip(answers, questions, strict=True))
    assert right >= 55
    assert written.shape[1] == 2
    assert model.num_parameters() < 1_000_000
    assert not [w for w in recwarn if w.category is UserWarning]
