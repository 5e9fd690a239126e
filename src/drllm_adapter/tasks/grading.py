"""Judging generated answers: graders by name."""

import importlib
import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ..errors import DrLLMError, refusing
from ..registry import Registry

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_UNIT = r"\s*[%°€]|\s+[a-zµ°][a-zµ]*[²³]?(?: [a-z]+)?|[a-zµ]{2,}[²³]?"
_ONE_NUMBER = re.compile(rf"([-+−]?)\s*[$€£¥]?\s*([-+−]?)\s*({_NUMBER})(?:{_UNIT})?\.?")
_BARE_NUMBER = re.compile(rf"([-+−]?)\s*[$€£¥]?\s*([-+−]?)\s*({_NUMBER})\s*%?")
_IN_TEXT = re.compile(rf"(?<![A-Za-z_\d])(?<!\d\.)(?:(?<![\w)\]])([-−]))?(?:{_NUMBER})")
_FORMULA = re.compile(
    r"\\[a-zA-Z]+|\^|^-?\d+\s*/\s*\d+$|^-?\d+[a-z]$|(?<![A-Za-z])[a-z]\s*[-+*/=]\s*[\d(a-z](?![A-Za-z])"
)


class Grader(ABC):
    """Whether a generated text gives the reference answer.

    Attributes:
        summary: a few words for `--help`.
        takes: what stands behind the name and a colon, such as "PATTERN"; None where nothing does.
        tokens: how many tokens an answer may have.

    Args:
        argument: what stands behind the colon.
    """

    summary: ClassVar[str]
    takes: ClassVar[str | None] = None
    tokens: ClassVar[int] = 256

    def __init__(self, argument: str = "") -> None:
        self.argument = argument

    @abstractmethod
    def right(self, generated: str, reference: str) -> bool:
        """Whether the text gives the answer."""

    def settled(self, begun: str, reference: str) -> bool:
        """Whether no continuation of the text `begun` can change what `right` says."""
        return False

    def can_match(self, reference: str) -> bool:
        """Whether any answer could be right; a reference for which none could is refused."""
        return True


GRADERS: Registry[Grader] = Registry("grader", "drllm_adapter.graders")


@GRADERS.register("exact")
class Exact(Grader):
    """The first line that is not empty, without case, outer blanks and a final stop; numbers by their value."""

    summary = "the first line is the reference"
    tokens = 64

    def right(self, generated: str, reference: str) -> bool:
        said, wanted = _plain(generated), _plain(reference)
        return said == wanted or (_bare_value(said) is not None and _bare_value(said) == _bare_value(wanted))

    def settled(self, begun: str, reference: str) -> bool:
        begun = begun.rstrip("\ufffd")  # the bytes of a character that is not complete
        line = next((line for line in begun.splitlines(keepends=True) if line.strip()), "")
        complete = line.splitlines() != [line]
        if not line or complete:
            return bool(line)
        if _bare_value(_plain(reference)) is not None and re.fullmatch(r"[-+−\d\s.,%$€£¥]*", line):
            wanted, said = (re.sub(r"\D", "", text).lstrip("0") for text in (reference, line))
            return not wanted.ljust(len(said), "0").startswith(said)
        return not _plain(reference).startswith(_plain(line))

    def can_match(self, reference: str) -> bool:
        return bool(_plain(reference)) and len(reference.strip().splitlines()) == 1


@GRADERS.register("last-number")
class LastNumber(Grader):
    r"""The value of the number behind `####`, in `\boxed{}` or, without these, of the last one in the text."""

    summary = "the last number has the reference's value"

    def right(self, generated: str, reference: str) -> bool:
        wanted = value_of(reference)
        return wanted is not None and self._said(generated) == wanted

    def _said(self, text: str) -> Decimal | None:
        marked = re.search(rf"####\s*[$€£¥]?\s*({_IN_TEXT.pattern})|\\boxed\{{[^{{}}]*?({_IN_TEXT.pattern})", text)
        found = [marked[1] or marked[3]] if marked else [match[0] for match in _IN_TEXT.finditer(text)]
        return _decimal(found[-1]) if found else None

    def can_match(self, reference: str) -> bool:
        return value_of(reference) is not None


@GRADERS.register("contains")
class Contains(Grader):
    """The reference occurs in the text as whole words, without case."""

    summary = "the reference occurs in the text"
    tokens = 64

    def right(self, generated: str, reference: str) -> bool:
        return self._found(generated, reference) is not None

    def settled(self, begun: str, reference: str) -> bool:
        found = self._found(begun, reference)
        return found is not None and found.end() <= len(_spaced(begun)) - 2  # 72 may become 725 or 72.5

    def can_match(self, reference: str) -> bool:
        return self.right(reference, reference)

    def _found(self, text: str, reference: str) -> "re.Match[str] | None":
        wanted = re.escape(_spaced(reference).strip(" ."))
        if not wanted:
            return None
        return re.search(rf"(?<!\w)(?<!\d[.,]){wanted}(?!\w|[.,]\d)", _spaced(text))


@GRADERS.register("math-verify")
class MathVerify(Grader):
    """The values are equal, by math-verify: `1/2` and `\\boxed{0.5}` agree.

    Raises:
        DrLLMError: the extra is not installed.
    """

    summary = "the values are equal, formulas included"

    def right(self, generated: str, reference: str) -> bool:
        _, verify = self._library()
        # What is no formula, such as a letter, has no value to compare.
        if Exact().right(generated, reference):
            return True
        return bool(verify(self._value(f"\\boxed{{{reference}}}"), self._value(generated)))

    def can_match(self, reference: str) -> bool:
        return self.right(f"\\boxed{{{reference}}}", reference)

    def _value(self, text: str) -> Any:
        parse, _ = self._library()
        return parse(text)

    def _library(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        try:
            from math_verify import parse, verify
        except ImportError as error:
            raise DrLLMError(
                'grading mathematical answers needs math-verify, but it is not installed; run pip install "drllm-'
                'adapter[math]", or choose another --grader.'
            ) from error
        return parse, verify


@GRADERS.register("regex")
class Pattern(Grader):
    """What the pattern finds first - its first group, where it has one - is the reference, as in `exact`."""

    summary = "what the pattern finds first is the reference"
    takes = "PATTERN"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        try:
            self._pattern = re.compile(argument)
        except re.error as error:
            raise DrLLMError(
                f"the grader regex needs a regular expression, but {argument!r} is none ({error}); correct it."
            ) from error

    def right(self, generated: str, reference: str) -> bool:
        found = self._pattern.search(generated)
        return found is not None and Exact().right(found[1 if self._pattern.groups else 0] or "", reference)


class Function(Grader):
    """A Python function of the generated text and the reference, in a file or a module."""

    def __init__(self, argument: str) -> None:
        super().__init__(argument)
        place, _, name = argument.rpartition(":")
        # Whatever the file raises.
        with refusing(
            f"the grader {argument} must be a function of a Python file or module, but loading it failed",
            "correct it",
            with_kind=True,
        ):
            if place.endswith(".py"):
                spec = importlib.util.spec_from_file_location(Path(place).stem, place)
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            else:
                module = importlib.import_module(place)
            self._function: Callable[[str, str], Any] = getattr(module, name)

    def right(self, generated: str, reference: str) -> bool:
        # Whatever the function raises.
        with refusing(
            f"the grader {self.argument} must say whether a text is right, but for {generated[:40]!r} it failed",
            "correct it",
            with_kind=True,
        ):
            return bool(self._function(generated, reference))


@cache
def grader_of(name: str) -> Grader:
    """The grader that a name means: `exact`, `regex:PATTERN`, `FILE.py:FUNCTION`, `MODULE:FUNCTION`, ...

    Raises:
        DrLLMError: there is no such grader, its pattern or function is none, or an extra is missing.
    """
    kind, colon, argument = name.partition(":")
    if colon and kind not in GRADERS:
        return Function(name)
    made = GRADERS[kind]
    if bool(argument) != (made.takes is not None):
        wanted = f"be written {kind}:{made.takes}" if made.takes else "stand alone"
        raise DrLLMError(f"the grader {kind} must {wanted}, but {name!r} was given; correct it.")
    return made(argument)


def graders_help() -> str:
    """All graders with what they are, for `--help`."""
    return f"{GRADERS.help()}; FILE.py:FUNCTION: your own, of the text and the reference"


def grader_for(reference: str) -> str:
    """The grader that goes by default with a reference: numbers by value, formulas by math-verify, others as text."""
    if value_of(reference) is not None:
        return "last-number"
    return "math-verify" if _FORMULA.search(reference.strip().strip("$")) else "exact"


def grade(grader: str, generated: str, reference: str) -> bool:
    """Whether the generated text gives the reference answer, by the grader of that name; see `grader_of`."""
    return grader_of(grader).right(generated, reference)


def settled(grader: str, begun: str, reference: str) -> bool:
    """Whether no continuation of the text `begun` can change what `grade` says of it."""
    return grader_of(grader).settled(begun, reference)


def value_of(text: str) -> Decimal | None:
    """The value of a text that is one number, with a currency, a percent sign or a unit in small letters at most."""
    found = _ONE_NUMBER.fullmatch(text.strip())
    return None if found is None else _decimal(f"{found[1]}{found[2]}{found[3]}")


def _bare_value(text: str) -> Decimal | None:
    found = _BARE_NUMBER.fullmatch(text.strip())
    return None if found is None else _decimal(f"{found[1]}{found[2]}{found[3]}")


def _decimal(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("−", "-").replace("--", "").replace("+-", "-").replace("-+", "-"))


def _plain(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return _spaced(lines[0]).strip().rstrip(".") if lines else ""


def _spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text).casefold()
