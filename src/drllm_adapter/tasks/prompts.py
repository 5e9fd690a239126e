"""The wording of prompts: what the model, and so the routers, read of a question."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import DrLLMError
from .contrast import as_choices
from .questions import LETTERS, Question

MODES = ("letter", "cloze", "contrast", "free", "self")

SELF_TOKENS = 24
"""Length of a reference, the model's own continuation of a prompt."""

# Generation lengths of the paper: ARC with and without a chat template, DART.
_TOKENS_INSTRUCT, _TOKENS_BASE, _TOKENS_MATH = 10, 2, 15


@dataclass(frozen=True)
class Prompt:
    """A question as it is put to the model.

    Attributes:
        text: all that the routers read.
        templated: a chat template made the text, special tokens included, so the tokenizer must not add more.
        continuations: texts whose likelihood after the prompt is scored: the letters, the choices' texts, or the one
            reference answer. A blank that belongs between prompt and answer is theirs.
        answer: index of the right continuation; the reference answer in the modes "free" and "self".
        mode: "letter", "cloze", "free" or "self".
        max_new_tokens: how many tokens a generated answer may have.
        grader: how a generated answer is judged, see `grading`.
        reference: in the mode "self" the token ids with which the base model itself goes on, its end token included;
            empty until it has done so, see `scoring.references`.
    """

    text: str
    templated: bool
    continuations: tuple[str, ...]
    answer: int | str
    mode: str
    max_new_tokens: int
    grader: str = "exact"
    reference: tuple[int, ...] = ()


def build_prompts(questions: Sequence[Question], mode: str, tokenizer: Any = None) -> list[Prompt]:
    """Word all questions of a set; the mode "contrast" first turns free ones into choices, see `as_choices`.

    Raises:
        DrLLMError: see `build_prompt`.
    """
    if mode == "contrast":
        return [build_prompt(question, "cloze", tokenizer) for question in as_choices(questions)]
    return [build_prompt(question, mode, tokenizer) for question in questions]


def build_prompt(question: Question, mode: str, tokenizer: Any = None) -> Prompt:
    """Word the question.

    Letters, free answers and prompts without answers go through the tokenizer's chat template when there is one. A
    cloze prompt is plain text with and without: it is continued by each choice's text, which no chat turn consists of.

    Raises:
        DrLLMError: the mode does not exist or does not go with the question.
    """
    if mode not in MODES:
        raise DrLLMError(f"mode must be one of {', '.join(MODES)}, but {mode!r} was given; choose one of them.")
    if mode == "contrast":
        raise DrLLMError(
            "the mode contrast takes wrong answers from the other questions of a set, but one question alone was "
            "given; use build_prompts."
        )
    if mode == "self":
        return _self(question, tokenizer)
    if question.answer is None:
        raise DrLLMError(
            f"the mode {mode} needs questions with answers, but {question.id!r} has none; use --mode self, which "
            f"compares with the model's own continuation."
        )
    if mode != "free" and question.choices is None:
        raise DrLLMError(
            f"the mode {mode} needs questions with choices, but question {question.id!r} has none; use --mode free "
            f"or, to compare with other questions' answers, --mode contrast."
        )
    if mode == "letter":
        return _letter(question, tokenizer)
    if mode == "cloze":
        return _cloze(question)
    return _free(question, tokenizer)


def _letter(question: Question, tokenizer: Any) -> Prompt:
    assert question.choices is not None
    assert question.answer is not None
    letters = LETTERS[: len(question.choices)]
    asked = question.prompt or f"Question: {_with_choices(question)}"
    chat = chat_text(f"{asked}\nAnswer with a single letter.", tokenizer)
    return Prompt(
        text=chat or (question.prompt or f"{asked}\nAnswer: The correct answer is"),
        templated=chat is not None,
        continuations=tuple(letters) if chat else tuple(f" {letter}" for letter in letters),
        answer=question.answer,
        mode="letter",
        max_new_tokens=_TOKENS_INSTRUCT if chat else _TOKENS_BASE,
    )


def _cloze(question: Question) -> Prompt:
    assert question.choices is not None
    assert question.answer is not None
    made = question.question if question.task == "khop" else f"Question: {question.question}\nAnswer:"
    return Prompt(
        text=question.prompt or made,
        templated=False,
        continuations=tuple(f" {choice}" for choice in question.choices),
        answer=question.answer,
        mode="cloze",
        max_new_tokens=_TOKENS_INSTRUCT,
    )


def _free(question: Question, tokenizer: Any) -> Prompt:
    assert question.answer is not None
    reference = question.answer if isinstance(question.answer, str) else (question.choices or ())[question.answer]
    boxed = question.task == "dart"
    instruction = "Answer with the final result in \\boxed{}." if boxed else "Answer with the final result only."
    chat = chat_text(question.prompt or f"{question.question}\n{instruction}", tokenizer)
    answer = f"\\boxed{{{reference}}}" if boxed else reference
    return Prompt(
        text=chat or question.prompt or f"Question: {question.question}\n{instruction}\nAnswer:",
        templated=chat is not None,
        continuations=(answer if chat else f" {answer}",),
        answer=reference,
        mode="free",
        max_new_tokens=_TOKENS_MATH,
        grader="math" if boxed else "exact",
    )


def _self(question: Question, tokenizer: Any) -> Prompt:
    asked = question.messages or question.prompt or _with_choices(question)
    chat = chat_text(asked, tokenizer)
    if chat is None and not isinstance(asked, str):
        raise DrLLMError(
            f"a conversation is worded by the tokenizer's chat template, but there is none for {question.id!r}; give "
            f"its text as `prompt`."
        )
    text = chat if chat is not None else str(asked)
    return Prompt(text, chat is not None, (), "", "self", SELF_TOKENS)


def _with_choices(question: Question) -> str:
    """The question, and its choices with their letters where it has some."""
    choices = question.choices or ()
    return "\n".join(
        [question.question, *(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))]
    )


def chat_text(message: str | Sequence[tuple[str, str]], tokenizer: Any) -> str | None:
    """The message in the tokenizer's chat template, up to where the answer begins; None without a template.

    Whatever puts a chat before routers takes it from here: they decide well on prompts worded as those they learnt on.

    Args:
        message: the user's, or a conversation as (role, text) pairs.
    """
    if tokenizer is None or getattr(tokenizer, "chat_template", None) is None:
        return None
    turns = [("user", message)] if isinstance(message, str) else message
    text: str = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,  # read by templates of reasoning models, ignored by others
    )
    return text


QUESTIONS_CHANGED = (
    "the questions must be those that the run in {folder} began with, but they have changed since then (an edited data "
    "file, or other options); bring them back or choose another folder."
)
"""What a run refuses to go on with when `digest_of` gives another hash than the one it began with."""


def digest_of(questions: Sequence[Question], prompts: Sequence[Prompt]) -> str:
    """A hash of what is asked: two runs with the same one ask the same."""
    content = [
        [question.id, *map(str, asdict(prompt).values())] for question, prompt in zip(questions, prompts, strict=True)
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
