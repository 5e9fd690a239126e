"""Reading questions and prompts from files or the Hub, and refusing what cannot be asked, by file and line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DrLLMError, first_sentence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

TASKS = ("arc", "dart", "jsonl", "khop")
_HUB_DEFAULTS = {"arc": "allenai/ai2_arc:ARC-Easy", "dart": "hkust-nlp/dart-math-pool-math"}
_KHOP_QUESTIONS = 500


@dataclass(frozen=True)
class Source:
    """Where a question comes from, for reports and cards.

    Attributes:
        name: of the dataset on the Hub, or of the file without its folder.
        config, split: of a dataset on the Hub; None otherwise.
        hub: `name` is a dataset on the Hub.
    """

    name: str
    config: str | None = None
    split: str | None = None
    hub: bool = False


@dataclass(frozen=True)
class Question:
    """One question, or a prompt without an answer.

    Attributes:
        id: unique in its file.
        task: "arc", "dart", "jsonl" or "khop", which decides the wording of the prompt, or the name that a row of
            "jsonl" gives itself in the field `task` or `kind`.
        question: its text; of a conversation what the user said last.
        choices: 2 to 26 texts; None for a free answer.
        answer: index of the right choice, or the reference answer; None for a prompt without one.
        level: difficulty where the task has one.
        prompt: ready-made text that replaces the task's wording.
        messages: a conversation up to the user's last turn, (role, text) each, in place of a text.
        source: where it was read; says nothing about what is asked, so questions are compared without it.
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


def load_questions(
    task: str,
    data: str | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    skip: int = 0,
    seed: int = 0,
    answers: bool = True,
) -> list[Question]:
    """The questions of a task, in the order of the data.

    Args:
        task: "arc" (multiple choice), "dart" (free mathematical answers), "jsonl" (either) or "khop" (made here).
        data: a `.jsonl`, `.json` or `.parquet` file, a `.txt` file with a prompt a line, or the name of a dataset on
            the Hub, `name:config` where it has several, or some of these with commas between them; None is the task's
            own dataset. A row has `question` (or `prompt`, or `query`, or `messages`: a conversation, of which what
            follows the user's last turn is left out), `answer` (or `answerKey`, or `gt_ans`), and optionally
            `choices`, `id`, `level` and `task` (or `kind`).
        split: of a dataset on the Hub; None is "train".
        limit: most questions to give; None is all.
        skip: questions to leave out at the beginning.
        seed: for made questions.
        answers: whether they are read, and every row must have one.

    Raises:
        DrLLMError: nothing is there, or a line is not a question that can be asked; names file and line.
    """
    if task not in TASKS:
        raise DrLLMError(f"task must be one of {', '.join(TASKS)}, but {task!r} was given; choose one of them.")
    if limit is not None and limit < 1:
        raise DrLLMError(f"limit must be at least 1 question, but {limit} was given; raise it or leave it out.")
    if skip < 0:
        raise DrLLMError(f"skip must be 0 or more questions, but {skip} was given; correct it.")
    end = None if limit is None else skip + limit
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for place, (where, fields, source) in enumerate(_rows(task, data, split, end, seed)):
        if place < skip:
            continue
        if end is not None and place >= end:
            break
        question = _question(task, fields, where, f"{Path(source.name).stem}-{place}", source, answers)
        if question.id in seen:
            raise DrLLMError(
                f"question ids must be unique, but {question.id!r} is in {seen[question.id]} and in {where}; "
                f"rename one of them."
            )
        seen[question.id] = where
        questions.append(question)
    if not questions:
        more = f" after the first {skip}" if skip else ""
        raise DrLLMError(f"{data or task} must hold at least one question{more}, but it holds none; check the data.")
    return questions


def sources_of(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """The different sources of some questions, in the order in which they first occur, as plain values."""
    return [asdict(source) for source in dict.fromkeys(question.source for question in questions) if source is not None]


def _rows(
    task: str, data: str | None, split: str | None, end: int | None, seed: int
) -> Iterator[tuple[str, Mapping[str, Any], Source]]:
    """Where each row stands, for messages, its fields and its source."""
    if task == "khop":
        if data is not None:
            raise DrLLMError(
                f"the task khop makes its own questions, but --data {data} was given; leave it out, or choose another "
                f"--task."
            )
        from ..demo.khop import generate

        for place, fields in enumerate(generate(end or _KHOP_QUESTIONS, seed)):
            yield f"made question {place}", fields, Source(task)
        return
    if data is None and task == "jsonl":
        raise DrLLMError("the task jsonl needs a file, but none was given; name it with --data.")
    named = _HUB_DEFAULTS[task] if data is None else data
    for name in [named] if Path(named).exists() else named.split(","):
        if Path(name).suffix in (".jsonl", ".json", ".parquet", ".txt") or Path(name).exists():
            source, rows = Source(Path(name).name), _file_rows(Path(name))
        else:
            dataset, _, config = name.partition(":")
            source = Source(dataset, config or None, split or "train", hub=True)
            rows = _hub_rows(dataset, source.config, split or "train")
        if task == "dart":
            rows = _without_repeats(rows)
        yield from ((where, fields, source) for where, fields in rows)


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.is_dir():
        raise DrLLMError(f"the data {path} must be a file, but it is a folder; name a file in it.")
    if not path.is_file():
        raise DrLLMError(f"the data file {path} must exist, but it does not; correct the name.")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DrLLMError(
                f"the data file {path} must be Parquet, but reading it failed ({first_sentence(error)}); "
                f"correct or replace it."
            ) from error
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
        return
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            if path.suffix == ".txt":
                yield where, {"prompt": line.strip()}
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise DrLLMError(f"{where} must be one JSON object, but it is not JSON; correct that line.") from error
            if not isinstance(fields, dict):
                raise DrLLMError(
                    f"{where} must be one JSON object, but it is a {type(fields).__name__}; correct that line."
                )
            yield where, fields


def _hub_rows(name: str, config: str | None, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Imported here: `datasets` is slow to load and local files do without it.
    import datasets

    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises many kinds: no network, no such name, no such split
        raise DrLLMError(
            f"the data {name!r} must be a file or a dataset on the Hub, but loading it failed "
            f"({first_sentence(error)}); correct the name or give a local file."
        ) from error
    yield from ((f"{name}, row {number}", row) for number, row in enumerate(rows, 1))


def _without_repeats(rows: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every query once: the pool of DART has many sampled responses to each."""
    seen: set[Any] = set()
    for where, fields in rows:
        query = fields.get("query")
        if not isinstance(query, str) or query not in seen:
            seen.add(query)
            yield where, fields


def _question(
    task: str, fields: Mapping[str, Any], where: str, default_id: str, source: Source, answers: bool
) -> Question:
    prompt = fields.get("prompt")
    # A conversation may be in `prompt` as well: datasets for preference training have it there.
    messages = _messages(prompt if isinstance(prompt, list) else fields.get("messages"), where)
    text: Any = next((fields[name] for name in ("question", "query", "prompt") if fields.get(name)), None)
    if messages is not None:
        text = messages[-1][1]
    if not isinstance(text, str) or not text.strip():
        wanted = "`question`" if answers else "`prompt` or `messages`"
        raise DrLLMError(f"{where} must have the text of a question, but it has none; add the field {wanted}.")
    choices, labels = _choices(fields, where)
    if task == "arc" and choices is None:
        raise DrLLMError(
            f"{where} must have choices, as every arc question does, but it has none; add `choices`, or read questions "
            f"without choices with --task jsonl --mode free."
        )
    answer = _answer(fields, choices, labels, where) if answers else None
    level = fields.get("level", (fields.get("query_metadata") or {}).get("level"))
    if isinstance(level, str):  # "Level 3"
        level = next((int(word) for word in level.split() if word.isdigit()), None)
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise DrLLMError(f"{where} must have a whole number as its level, but it has {level!r}; correct or remove it.")
    return Question(
        id=str(fields["id"]) if fields.get("id") is not None else default_id,
        # A mixture of tasks names each row's own.
        task=str(fields.get("task") or fields.get("kind") or task) if task == "jsonl" else task,
        question=text,
        choices=choices,
        answer=answer,
        level=level,
        messages=messages,
        prompt=prompt if isinstance(prompt, str) and prompt.strip() else None,
        source=source,
    )


def _messages(found: Any, where: str) -> tuple[tuple[str, str], ...] | None:
    """A conversation up to the user's last turn; None where there is none."""
    if not found:
        return None
    if not isinstance(found, (list, tuple)) or not all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in found
    ):
        raise DrLLMError(
            f"{where} must have a list of messages with a `role` and a text as `content` each, but it has not; correct "
            f"`messages`."
        )
    last = max((place for place, turn in enumerate(found) if turn["role"] == "user"), default=-1)
    if last < 0:
        raise DrLLMError(
            f"{where} must have a message of the user to be answered, but it has none; correct `messages`."
        )
    return tuple((turn["role"], turn["content"]) for turn in found[: last + 1])


def _choices(fields: Mapping[str, Any], where: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Texts of the choices, None for a free answer, and the labels that the data gives them."""
    found = fields.get("choices")
    if found is None:
        return None, ()
    labels: tuple[str, ...] = ()
    if isinstance(found, Mapping):  # {"text": [...], "label": [...]}, as in ai2_arc
        labels = tuple(str(label) for label in found.get("label") or ())
        found = found.get("text")
    if not isinstance(found, (list, tuple)) or not all(isinstance(text, str) and text.strip() for text in found):
        raise DrLLMError(f"{where} must have a list of texts as its choices, but it has not; correct `choices`.")
    if not 2 <= len(found) <= len(LETTERS):
        raise DrLLMError(f"{where} must have 2 to {len(LETTERS)} choices, but it has {len(found)}; correct `choices`.")
    return tuple(found), labels if len(labels) == len(found) else tuple(LETTERS[: len(found)])


def _answer(
    fields: Mapping[str, Any], choices: tuple[str, ...] | None, labels: tuple[str, ...], where: str
) -> int | str:
    answer = next((fields[name] for name in ("answer", "answerKey", "gt_ans") if fields.get(name) is not None), None)
    if answer is None or answer == "":
        raise DrLLMError(
            f"{where} must have an answer, but it has none; add the field `answer`, or learn from the model's own "
            f"continuation with --mode self."
        )
    return _free_answer(answer, where) if choices is None else _choice_index(answer, choices, labels, where)


def _choice_index(answer: Any, choices: tuple[str, ...], labels: tuple[str, ...], where: str) -> int:
    """The answer as an index: given as one, as a label, or as the text of a choice."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return answer
    elif isinstance(answer, str):
        for names in (labels, choices):
            if answer.strip() in names:
                return names.index(answer.strip())
    raise DrLLMError(
        f"{where} must have an answer that is an index from 0 to {len(choices) - 1}, a label or the text of a choice, "
        f"but it has {answer!r}; correct `answer`."
    )


def _free_answer(answer: Any, where: str) -> str:
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise DrLLMError(f"{where} must have a text or a number as its answer, but it has {answer!r}; correct it.")
    return str(answer)
