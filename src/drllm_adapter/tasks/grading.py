"""Judging generated answers."""

import re

from ..errors import DrLLMError

GRADERS = ("exact", "math")


def grade(grader: str, generated: str, reference: str) -> bool:
    """Whether the generated text gives the reference answer.

    Args:
        grader: "exact" compares the first line that is not empty, without case, outer blanks and a final stop; "math"
            compares values with math-verify, so that `1/2` and `\\boxed{0.5}` agree.

    Raises:
        DrLLMError: there is no such grader, or it needs an extra that is not installed.
    """
    if grader == "exact":
        return _plain(generated) == _plain(reference)
    if grader == "math":
        return _math(generated, reference)
    raise DrLLMError(f"the grader must be one of {', '.join(GRADERS)}, but {grader!r} was given; choose one of them.")


def settled(grader: str, begun: str, reference: str) -> bool:
    """Whether no continuation of the text `begun` can change what `grade` says of it.

    With "exact", when the first line is complete or no longer begins as the reference does; with "math" never, since
    any later expression counts.
    """
    if grader != "exact":
        return False
    begun = begun.rstrip("\ufffd")  # the bytes of a character that is not complete
    line = next((line for line in begun.splitlines(keepends=True) if line.strip()), "")
    complete = line.splitlines() != [line]
    return bool(line) and (complete or not _plain(reference).startswith(_plain(line)))


def _plain(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"\s+", " ", lines[0]).strip().rstrip(".").casefold() if lines else ""


def _math(generated: str, reference: str) -> bool:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise DrLLMError(
            'grading mathematical answers needs math-verify, but it is not installed; run pip install "drllm-adapter'
            '[math]".'
        ) from error
    gold = parse(f"\\boxed{{{reference}}}")
    return bool(verify(gold, parse(generated)))
