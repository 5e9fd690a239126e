"""Tasks: where their questions come from and how they are worded."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..registry import Registry

if TYPE_CHECKING:
    from .data import Row
    from .questions import Question


class Task:
    """A kind of question; the base class words the questions of every task that says nothing else.

    Attributes:
        summary: a few words for `--help`.
        data: the dataset on the Hub that is read when none is named; None where one must be.
        needs_choices: every question has choices.
        names_rows: a row may name itself after another task or set, in its field `task`.
        makes_questions: the questions are drawn by `make`, and there is no data.
        instruction: behind a free question.
        grader: of free answers; None goes by the reference.
    """

    summary: ClassVar[str] = ""
    data: ClassVar[str | None] = None
    needs_choices: ClassVar[bool] = False
    names_rows: ClassVar[bool] = False
    makes_questions: ClassVar[bool] = False
    instruction: ClassVar[str] = "Answer with the final result only."
    grader: ClassVar[str | None] = None

    def make(self, count: int | None, seed: int) -> Iterable[Mapping[str, Any]]:
        """Questions drawn by the seed, as rows; `count` of them, or the task's own number."""
        raise NotImplementedError

    def rows(self, rows: "Iterator[Row]") -> "Iterator[Row]":
        """The rows of the data that are questions."""
        return rows

    def cloze(self, question: "Question") -> str:
        """The text that a choice continues."""
        return f"Question: {question.question}\nAnswer:"

    def written(self, reference: str) -> str:
        """A free answer as the instruction asks for it."""
        return reference


TASKS: Registry[Task] = Registry("task", "drllm_adapter.tasks")


def task_of(question: "Question") -> Task:
    """The task that words a question; a set that a row names itself after is worded as any other."""
    return TASKS[question.task]() if question.task in TASKS else Task()


@TASKS.register("arc")
class Arc(Task):
    """Multiple choice, as in AI2's ARC."""

    summary = "multiple choice"
    data = "allenai/ai2_arc:ARC-Easy"
    needs_choices = True


@TASKS.register("dart")
class Dart(Task):
    """Mathematics with a boxed result, as in DART-Math."""

    summary = "mathematics"
    data = "hkust-nlp/dart-math-pool-math"
    instruction = "Answer with the final result in \\boxed{}."
    grader = "math-verify"

    def rows(self, rows: "Iterator[Row]") -> "Iterator[Row]":
        """Every query once: the pool has many sampled responses to each."""
        seen: set[Any] = set()
        for where, fields in rows:
            query = fields.get("query") if isinstance(fields, Mapping) else None
            if not isinstance(query, str) or query not in seen:
                seen.add(query)
                yield where, fields

    def written(self, reference: str) -> str:
        return f"\\boxed{{{reference}}}"


@TASKS.register("jsonl")
class Own(Task):
    """Any questions, with choices or without; a row may name the task or the set that it is of."""

    summary = "your own questions or prompts"
    names_rows = True


@TASKS.register("khop")
class KHop(Task):
    """Questions that need a known number of steps, for the demo model."""

    summary = "made here, for the demo model"
    makes_questions = True

    def make(self, count: int | None, seed: int) -> Iterable[Mapping[str, Any]]:
        from ..demo.khop import generate

        return generate(count or 500, seed)

    def cloze(self, question: "Question") -> str:
        return question.question
