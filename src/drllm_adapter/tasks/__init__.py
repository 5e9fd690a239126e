"""Questions, the prompts made of them and the grading of answers: knows no model."""

from .contrast import as_choices
from .data import Source, decoded, names_of
from .grading import GRADERS, Grader, grade, grader_of, graders_help, settled
from .prompts import MODES, QUESTIONS_CHANGED, Prompt, build_prompt, build_prompts, chat_text, digest_of, word_questions
from .questions import Question, load_questions, sources_of
from .task import TASKS, Task
from .values import without_surrogates

__all__ = [
    "GRADERS",
    "MODES",
    "QUESTIONS_CHANGED",
    "TASKS",
    "Grader",
    "Prompt",
    "Question",
    "Source",
    "Task",
    "as_choices",
    "build_prompt",
    "build_prompts",
    "chat_text",
    "decoded",
    "digest_of",
    "grade",
    "grader_of",
    "graders_help",
    "load_questions",
    "names_of",
    "settled",
    "sources_of",
    "without_surrogates",
    "word_questions",
]
