"""The wording of prompts: what the model, and so the routers, read of a question."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import DrLLMError
from .contrast import as_choices
from .grading import grader_for, grader_of
from .questions import LETTERS, Question
from .task import task_of

MODES = ("letter", "cloze", "contrast", "free", "self")

SELF_TOKENS = 24
"""Length of a reference, the model's own continuation of a prompt."""

# Generation lengths of the paper for letters, with and without a chat template.
_TOKENS_INSTRUCT, _TOKENS_BASE = 10, 2


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
        grader: how a generated answer is judged, see `grading.grader_of`.
        stop: what ends a generated answer; a base model goes on with the next question.
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
    stop: str | None = None
    reference: tuple[int, ...] = ()

    def answer_in(self, generated: str) -> str:
        """What of a generated text is the answer."""
        return generated if self.stop is None else generated.partition(self.stop)[0]


def build_prompts(
    questions: Sequence[Question], mode: str, tokenizer: Any = None, *, grader: str | None = None
) -> list[Prompt]:
    """Word all questions of a set, see `word_questions`.

    Raises:
        DrLLMError: see `build_prompt`.
    """
    return word_questions(questions, mode, tokenizer, grader=grader)[1]


def word_questions(
    questions: Sequence[Question],
    mode: str,
    tokenizer: Any = None,
    *,
    grader: str | None = None,
    max_new_tokens: int | None = None,
    check: Callable[[Prompt], object] = lambda prompt: None,
    skip_bad: Callable[[str], None] | None = None,
) -> tuple[list[Question], list[Prompt]]:
    """Word all questions of a set; the mode "contrast" first turns free ones into choices, see `as_choices`.

    Args:
        grader: of generated answers; None goes by the task and the reference, see `grading.grader_for`.
        max_new_tokens: of generated answers; None is what the grader needs.
        check: raises a `DrLLMError` for a prompt that cannot be scored.
        skip_bad: told, in a sentence, of every question that cannot be asked and is left out; None refuses it.

    Returns:
        The questions that are asked, and their prompts.

    Raises:
        DrLLMError: see `build_prompt`; or the check's, with the question's name.
    """
    kept, prompts = [], []
    contrast = mode == "contrast"
    for question, asked in zip(questions, as_choices(questions) if contrast else questions, strict=True):
        try:
            prompt = build_prompt(asked, "cloze" if contrast else mode, tokenizer, grader=grader)
            if max_new_tokens is not None:
                prompt = replace(prompt, max_new_tokens=max_new_tokens)
            try:
                check(prompt)
            except DrLLMError as error:
                raise DrLLMError(f"{question.name}: {error}") from error
        except DrLLMError as error:
            if skip_bad is None:
                raise
            skip_bad(str(error))
            continue
        kept.append(question)
        prompts.append(prompt)
    if questions and not kept:
        raise DrLLMError("at least one question must be one that can be asked, but all are left out; mend the data.")
    return kept, prompts


def build_prompt(question: Question, mode: str, tokenizer: Any = None, *, grader: str | None = None) -> Prompt:
    """Word the question.

    Letters, free answers and prompts without answers go through the tokenizer's chat template when there is one. A
    cloze prompt is plain text with and without: it is continued by each choice's text, which no chat turn consists of.

    Raises:
        DrLLMError: the mode or the grader does not exist or does not go with the question.
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
            f"the mode {mode} needs questions with choices, but {question.name} has none; use --mode free "
            f"or, to compare with other questions' answers, --mode contrast."
        )
    if mode == "letter":
        return _letter(question, tokenizer)
    if mode == "cloze":
        return _cloze(question)
    return _free(question, tokenizer, grader)


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
    return Prompt(
        text=question.prompt or task_of(question).cloze(question),
        templated=False,
        continuations=tuple(f" {choice}" for choice in question.choices),
        answer=question.answer,
        mode="cloze",
        max_new_tokens=_TOKENS_INSTRUCT,
    )


def _free(question: Question, tokenizer: Any, grader: str | None) -> Prompt:
    assert question.answer is not None
    reference = question.answer if isinstance(question.answer, str) else (question.choices or ())[question.answer]
    task = task_of(question)
    name = grader or task.grader or grader_for(reference)
    judge = grader_of(name)
    if not judge.can_match(reference):
        raise DrLLMError(
            f"the reference answer of {question.name} must be one that the grader {name} can find right, but "
            f"{reference[:60]!r} is none; correct it, leave it out or choose another --grader."
        )
    chat = chat_text(question.prompt or f"{question.question}\n{task.instruction}", tokenizer)
    answer = task.written(reference)
    return Prompt(
        text=chat or question.prompt or f"Question: {question.question}\n{task.instruction}\nAnswer:",
        templated=chat is not None,
        continuations=(answer if chat else f" {answer}",),
        answer=reference,
        mode="free",
        max_new_tokens=max(judge.tokens, len(answer)),  # room for the reference: a token has a character at least
        grader=name,
        stop=None if chat else "\nQuestion:",
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
