"""Rows as questions and prompts: what their fields mean, and refusing what cannot be asked, by file and line."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from ..errors import DrLLMError, check_range
from .data import QUESTION_FIELDS, Row, Source, is_conversation, names_of, parsed, rows_in_memory, rows_of
from .task import TASKS, Task
from .values import text_of, whole_number, without_surrogates

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_CHOICES_FIELDS = ("choices", "options", "endings")
# Fields that say the answer; where a row has several, they must say the same.
_ANSWER_FIELDS = ("answer", "answerKey", "answer_key", "answer_index", "answer_idx", "gt_ans", "correct_answer")
# Names that mean the answer where a row has none of the others.
_OTHER_ANSWER_FIELDS = ("label", "target", "solution")
_NUMBERED = re.compile(r"(?:option|choice|ending|sol)[ _]?(\d+|[A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One question, or a prompt without an answer.

    Attributes:
        id: unique in its file.
        task: the name of a task, which decides the wording of the prompt, or the name that a row of "jsonl" gives
            itself in the field `task` or `kind`.
        question: its text; of a conversation what the user said last.
        choices: 2 to 26 texts; None for a free answer.
        answer: index of the right choice, or the reference answer; None where answers were not read.
        level: difficulty where the task has one.
        prompt: ready-made text that replaces the task's wording.
        messages: a conversation up to the user's last turn, (role, text) each, in place of a text.
        source, where: the set and the line that it was read from; they say nothing about what is asked, so questions
            are compared without them.
    """

    id: str
    task: str
    question: str
    choices: tuple[str, ...] | None
    answer: int | str | None
    level: int | None = None
    prompt: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    source: Source | None = field(default=None, compare=False)
    where: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The question for messages: its id, and where it stands."""
        return f"question {self.id!r}" + (f" ({self.where})" if self.where else "")


def load_questions(
    task: str,
    data: str | Iterable[Mapping[str, Any]] | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    with_answers: bool = True,
    skip_bad: Callable[[str], None] | None = None,
) -> list[Question]:
    """The questions of a task, in the order of the data.

    Args:
        task: the name of a task, see `TASKS`: "arc" (multiple choice), "dart" (free mathematical answers), "jsonl"
            (either), "khop" (made here).
        data: a file (JSON lines, JSON, CSV, TSV, Parquet, Arrow; see `data`), a folder that `datasets` saved or the
            name of a dataset on the Hub, `name:config` where it has several, or some of these with commas between
            them; or rows: a list of mappings, a `datasets.Dataset`, a pandas frame. None is the task's own dataset.
            A row has `question` (or `query`, `problem`, `prompt`; or `messages`, a conversation, of which what follows
            the user's last turn is left out), `answer` (or `answerKey`, `gt_ans`, ...), and optionally `choices`,
            `id`, `level` and `task` (or `kind`).
        split: of a dataset on the Hub; None is "train".
        limit: most questions to give; None is all.
        skip: questions to leave out at the beginning.
        seed: for made questions.
        with_answers: whether answers are read, and every row must have one.
        skip_bad: told, in a sentence, of every row that cannot be asked and is left out; None refuses it.

    Raises:
        DrLLMError: nothing is there, or a row is not a question that can be asked; names file and line.
    """
    kind = TASKS[task]()
    if limit is not None:
        check_range("limit", limit, 1, math.inf)
    check_range("skip", skip, 0, math.inf)
    end = None if limit is None else skip + limit
    questions: list[Question] = []
    seen: dict[str, str] = {}
    bad = 0
    place = 0
    for source, rows in _sources(task, kind, data, split, end, seed):
        answers = _Answers()
        begin = len(questions)
        for where, fields in islice(rows, None if end is None else end - place):
            place += 1
            if place <= skip:
                continue
            try:
                if isinstance(fields, DrLLMError):
                    raise fields
                name = f"{source.stem}-{place - 1}"
                question = _question(task, fields, where, name, source, answers if with_answers else None)
                if question.id in seen:
                    raise DrLLMError(
                        f"question ids must be unique, but {question.id!r} is in {seen[question.id]} and in {where}; "
                        f"rename one of them."
                    )
            except DrLLMError as error:
                if skip_bad is None:
                    raise
                skip_bad(str(error))
                bad += 1
                continue
            seen[question.id] = where
            questions.append(question)
        questions[begin:] = answers.settled(questions[begin:], skip_bad)
    if not questions:
        more = f" after the first {skip}" if skip else ""
        more += f" that can be asked, beside the {bad} left out," if bad else ""
        named = data if isinstance(data, str) else task if data is None else "the data"
        raise DrLLMError(f"{named} must hold at least one question{more}, but it holds none; check the data.")
    return questions


def sources_of(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """The different sources of some questions, in the order in which they first occur, as plain values."""
    return [asdict(source) for source in dict.fromkeys(question.source for question in questions) if source is not None]


def _sources(
    name: str, task: Task, data: str | Iterable[Mapping[str, Any]] | None, split: str | None, end: int | None, seed: int
) -> Iterator[tuple[Source, Iterator[Row]]]:
    """Every source that is named and its rows."""
    if task.makes_questions:
        if data is not None:
            raise DrLLMError(
                f"the task {name} makes its own questions, but --data {data} was given; leave it out, or choose "
                f"another --task."
            )
        made = task.make(end, seed)
        yield Source(name), ((f"made question {number}", row) for number, row in enumerate(made))
        return
    data = task.data if data is None else data
    if data is None:
        raise DrLLMError(f"the task {name} needs a file, but none was given; name it with --data.")
    if isinstance(data, str):
        for one in names_of(data):
            source, rows = rows_of(one, split)
            yield source, task.rows(rows)
    else:
        yield Source("rows"), task.rows(rows_in_memory(data))


def _question(
    task: str, fields: Mapping[str, Any], where: str, default_id: str, source: Source, answers: "_Answers | None"
) -> Question:
    name, text = next(((name, parsed(fields[name])) for name in QUESTION_FIELDS if fields.get(name)), ("", None))
    if isinstance(text, Mapping) and "stem" in text:  # {"stem": ..., "choices": [...]}, as AI2 publishes its sets
        fields = {**fields, **{key: value for key, value in text.items() if key != "stem"}}
        text = text["stem"]
    messages = None
    if name == "messages" or is_conversation(text):
        messages = _messages(text, where)
        text = messages[-1][1]
    elif not isinstance(text, (str, Mapping)):
        text = fields.get(name) if isinstance(fields.get(name), str) else text_of(text)
    if not isinstance(text, str) or not text.strip():
        wanted = "`prompt` or `messages`" if answers is None else "`question`"
        raise DrLLMError(f"{where} must have the text of a question, but it has none; add the field {wanted}.")
    choices, labels = _choices(fields, where)
    kind = TASKS[task]
    if kind.needs_choices and choices is None:
        raise DrLLMError(
            f"{where} must have choices, as every {task} question does, but it has none; add `choices`, or read "
            f"questions without choices with --task jsonl --mode free."
        )
    given = {name: fields[name] for name in _ANSWER_FIELDS if fields.get(name) not in (None, "")}
    if not given:
        given = {name: fields[name] for name in _OTHER_ANSWER_FIELDS if fields.get(name) not in (None, "")}
        given = dict(list(given.items())[:1])
    if not given and answers is not None:
        raise DrLLMError(
            f"{where} must have an answer, but it has none; add the field `answer`, or compare with the model's own "
            f"continuation with --mode self."
        )
    prompt = fields.get("prompt")
    question = Question(
        id=text_of(fields["id"]) or str(fields["id"]) if fields.get("id") not in (None, "") else default_id,
        # A mixture of tasks names each row's own.
        task=str(fields.get("task") or fields.get("kind") or task) if kind.names_rows else task,
        question=text,
        choices=choices,
        answer=None if answers is None else _free_answer(given, where) if choices is None else -1,
        level=_level(fields, where),
        prompt=prompt if isinstance(prompt, str) and prompt.strip() else None,
        messages=messages,
        source=source,
        where=where,
    )
    turns = [said for _, said in messages or ()]
    for said in (question.id, question.question, question.prompt or "", str(question.answer), *(choices or ()), *turns):
        without_surrogates(said, where)
    return (
        question
        if choices is None or answers is None
        else replace(question, answer=answers.read(question, given, labels))
    )


def _messages(found: Any, where: str) -> tuple[tuple[str, str], ...]:
    """A conversation up to the user's last turn."""
    if not is_conversation(found) or not all(
        isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str) for turn in found
    ):
        raise DrLLMError(
            f"{where} must have a list of messages with a `role` and a text as `content` each, but it has not; correct "
            f"`messages`."
        )
    last = max((place for place, turn in enumerate(found) if turn["role"] == "user"), default=-1)
    if last < 0:
        raise DrLLMError(f"{where} must have a message of the user, to be answered, but it has none; add it.")
    return tuple((turn["role"], turn["content"]) for turn in found[: last + 1])


def _level(fields: Mapping[str, Any], where: str) -> int | None:
    metadata = parsed(fields.get("query_metadata"))
    level = fields.get("level", metadata.get("level") if isinstance(metadata, Mapping) else None)
    found = whole_number(level)
    if found is None and isinstance(level, str):  # "Level 3"
        return next((int(word) for word in level.split() if word.isdigit()), None)
    if found is None and level is not None:
        raise DrLLMError(f"{where} must have a whole number as its level, but it has {level!r}; correct or remove it.")
    return found


def _choices(fields: Mapping[str, Any], where: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Texts of the choices, None for a free answer, and the labels that the row gives them, if it does."""
    found = next((parsed(fields[name]) for name in _CHOICES_FIELDS if fields.get(name) is not None), None)
    labels: Any = ()
    if found is None:
        return _choices_in_columns(fields)
    if isinstance(found, Mapping):
        if "text" in found:  # {"text": [...], "label": [...]}, as in ai2_arc
            labels, found = parsed(found.get("label")) or (), parsed(found["text"])
        else:  # {"A": ..., "B": ...}
            labels, found = tuple(found), list(found.values())
    elif isinstance(found, list) and found and all(isinstance(item, Mapping) and "text" in item for item in found):
        labels = [item.get("label") for item in found]
        found = [item["text"] for item in found]
    elif isinstance(found, list) and found and all(_is_pair(item) for item in found):
        # [{"key": "A", "value": ...}, ...], as in MedQA, and what Parquet makes of a mapping.
        pairs = [tuple(item.values()) if isinstance(item, Mapping) else item for item in found]
        labels, found = [label for label, _ in pairs], [text for _, text in pairs]
    texts = [text_of(text) for text in found] if isinstance(found, list) else [None]
    if not all(text and text.strip() for text in texts):
        raise DrLLMError(f"{where} must have a list of texts as its choices, but it has not; correct `choices`.")
    if not 2 <= len(texts) <= len(LETTERS):
        raise DrLLMError(f"{where} must have 2 to {len(LETTERS)} choices, but it has {len(texts)}; correct `choices`.")
    named = tuple(_bare(text_of(label) or "") for label in labels)
    if named and (len(named) != len(texts) or len(set(named)) != len(named)):
        raise DrLLMError(
            f"{where} must have a label of its own for each of its {len(texts)} choices, but it has "
            f"{', '.join(named)}; correct or remove the labels."
        )
    return tuple(text for text in texts if text is not None), named


def _is_pair(item: Any) -> bool:
    return (isinstance(item, Mapping) and list(item) == ["key", "value"]) or (isinstance(item, list) and len(item) == 2)


def _choices_in_columns(fields: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Choices that stand in columns of their own: A, B, C, D or option1, option2, ..., which are their labels."""
    letters = [letter for letter in LETTERS if fields.get(letter) is not None]
    columns = {letter: letter for letter in letters} if letters == list(LETTERS[: len(letters)]) else {}
    if len(columns) < 2:
        matches = ((_NUMBERED.fullmatch(name), name) for name in fields if fields[name] is not None)
        columns = {match[1].upper(): name for match, name in matches if match is not None}
    texts = [text_of(fields[name]) for name in columns.values()]
    if len(texts) < 2 or not all(texts):
        return None, ()
    return tuple(text for text in texts if text is not None), tuple(columns)


def _bare(label: str) -> str:
    """A label without what people put around it: "(B)", "B." and "b)" are B, b."""
    return label.strip().strip("().:").strip()


class _Answers:
    """The answers of the questions of one source as indices of their choices.

    An answer may be a label that the row gives its choices, which then counts before all else; a letter; the text of a
    choice; a position from 0 or from 1. Mostly only one of these fits. Where several do and mean different choices,
    the other rows of the source tell which one it is; where they do not either, the row is refused.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._from_1 = 0
        self._open: dict[str, dict[str, int]] = {}

    def read(self, question: Question, given: Mapping[str, Any], labels: tuple[str, ...]) -> int:
        """The index that a row's answer means; for now the likeliest where `settled` has to find out.

        Raises:
            DrLLMError: it means none, or two fields say different ones.
        """
        assert question.choices is not None
        found: dict[str, int] = {}
        for place, (name, answer) in enumerate(given.items()):
            readings = _readings(answer, question.choices, labels)
            if not readings:
                raise _no_choice(question, answer)
            agreed = {kind: index for kind, index in found.items() if index in readings.values()}
            if place and not agreed:
                first = next(iter(given))
                raise DrLLMError(
                    f"{question.where} must have one answer, but `{first}` is {given[first]!r} and `{name}` is "
                    f"{answer!r}, which are different choices; correct one of them."
                )
            found = agreed or readings
        self._from_1 += _FROM_1 in found
        if len(found) == 1:
            self._seen.update(found)
        if len(set(found.values())) > 1 or list(found) == [_FROM_1]:
            self._open[question.id] = found
        return next(iter(found.values()))

    def settled(self, questions: list[Question], skip_bad: Callable[[str], None] | None) -> list[Question]:
        """The questions of the source, with the answers that could be read in several ways.

        Raises:
            DrLLMError: nothing tells which reading is meant.
        """
        if _FROM_0 in self._seen or self._from_1 < 2:  # one row alone is rather a mistake
            self._seen.discard(_FROM_1)
        kept = []
        for question in questions:
            readings = self._open.get(question.id)
            if readings is not None:
                try:
                    question = replace(question, answer=self._choose(question, readings))
                except DrLLMError as error:
                    if skip_bad is None:
                        raise
                    skip_bad(str(error))
                    continue
            kept.append(question)
        return kept

    def _choose(self, question: Question, readings: Mapping[str, int]) -> int:
        if _FROM_1 not in self._seen and list(readings) == [_FROM_1]:
            raise _no_choice(question, readings[_FROM_1] + 1)
        meant = {index for kind, index in readings.items() if kind in self._seen}
        if len(meant) == 1:
            return meant.pop()
        others = {index for kind, index in readings.items() if kind != _FROM_1}
        if not meant and len(others) == 1:  # counted from 0, unless some row of the source can only count from 1
            return others.pop()
        assert question.choices is not None
        ways = [f"as {kind} {question.choices[index]!r}" for kind, index in readings.items()]
        raise DrLLMError(
            f"{question.where} must have an answer that can be read in one way, but it is {' and '.join(ways)}; give "
            f"the choices labels ({{'text': [...], 'label': [...]}}) or write the answer as a letter."
        )


_FROM_0, _FROM_1 = "position from 0", "position from 1"


def _no_choice(question: Question, answer: Any) -> DrLLMError:
    assert question.choices is not None
    return DrLLMError(
        f"{question.where} must have an answer that is an index from 0 to {len(question.choices) - 1}, a label or the "
        f"text of a choice, but it has {answer!r}; correct it."
    )


def _readings(answer: Any, choices: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, int]:
    """All that an answer can mean: the way of reading it, and the index of the choice."""
    text = text_of(answer)
    if text is None:
        return {}
    text, bare = text.strip(), _bare(text)
    for spelt in (str, str.casefold):
        names = [spelt(label) for label in labels]
        if spelt(bare) in names:
            return {"label": names.index(spelt(bare))}
    found: dict[str, int] = {}
    if not labels and len(bare) == 1 and bare.upper() in LETTERS[: len(choices)]:
        found["letter"] = LETTERS.index(bare.upper())
    for spelt in (str, str.casefold):
        names = [spelt(choice.strip()) for choice in choices]
        if spelt(text) in names:
            found["text"] = names.index(spelt(text))
            break
    number = whole_number(answer)
    if number is not None and 0 <= number < len(choices):
        found[_FROM_0] = number
    if number is not None and 1 <= number <= len(choices):
        found[_FROM_1] = number - 1
    return found


def _free_answer(given: Mapping[str, Any], where: str) -> str:
    """The reference answer; of a worked solution its result."""
    results = {}
    for name, answer in given.items():
        text = text_of(answer)
        if text is None or not text.strip():
            raise DrLLMError(f"{where} must have a text or a number as its answer, but it has {answer!r}; correct it.")
        results[name] = result_of(text)
    (first, answer), *others = results.items()
    for name, other in others:
        if name != "answer_index" and _comparable(other) != _comparable(answer):
            raise DrLLMError(
                f"{where} must have one answer, but `{first}` is {answer!r} and `{name}` is {other!r}; correct one of "
                f"them."
            )
    return answer


def _comparable(answer: str) -> str:
    return re.sub(r"[\s,$]", "", answer).casefold()


def result_of(solution: str) -> str:
    r"""The result of a worked solution as sets publish it: behind the last `####` (GSM8K) or in the last `\boxed{}`."""
    if "####" in solution:
        # 1,234 is written without the comma there, as the set's own evaluation does it.
        return re.sub(r"(?<=\d),(?=\d{3})", "", solution.rpartition("####")[2].strip()) or solution
    begin = max(solution.rfind("\\boxed{"), solution.rfind("\\fbox{"))
    if begin >= 0:
        depth, first = 0, solution.index("{", begin)
        for place in range(first, len(solution)):
            depth += {"{": 1, "}": -1}.get(solution[place], 0)
            if depth == 0:
                return solution[first + 1 : place].strip() or solution
    return solution
