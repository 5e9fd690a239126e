"""Questions, the prompts made of them and the grading of answers: knows no model."""

from .contrast import as_choices
from .grading import GRADERS, grade, settled
from .prompts import MODES, QUESTIONS_CHANGED, Prompt, build_prompt, build_prompts, chat_text, digest_of
from .questions import TASKS, Question, Source, load_questions, sources_of

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
    "settled",
    "sources_of",
]
