"""Questions, the prompts made of them and the grading of answers: knows no model."""

from .grading import GRADERS, grade
from .prompts import MODES, Prompt, build_prompt
from .questions import TASKS, Question, Source, load_questions, sources_of

__all__ = [
    "GRADERS",
    "MODES",
    "TASKS",
    "Prompt",
    "Question",
    "Source",
    "build_prompt",
    "grade",
    "load_questions",
    "sources_of",
]
