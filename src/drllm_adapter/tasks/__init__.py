"""Questions, the prompts made of them and the grading of answers: knows no model."""

from .contrast import as_choices
from .data import Source, names_of
from .grading import GRADERS, grade, settled
from .prompts import MODES, QUESTIONS_CHANGED, Prompt, build_prompt, build_prompts, chat_text, digest_of
from .questions import TASKS, Question, load_questions, sources_of

__all__ = [
    "GRADERS",
    "MODES",
    "QUESTIONS_CHANGED",
    "TASKS",
    "Prompt",
    "Question",
    "Source",
    "as_choices",
    "build_prompt",
    "build_prompts",
    "chat_text",
    "digest_of",
    "grade",
    "load_questions",
    "names_of",
    "settled",
    "sources_of",
]
