"""What ends a command: input that the user can mend, another process that failed, a request to stop; and the words
that messages take from others."""

import math
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+")


class DrLLMError(ValueError):
    """A mistake the user can mend; the message is one sentence: what, expected, found, what to do.

    A `ValueError`, because that is what PEFT and transformers raise for bad arguments. The command line prints the
    message alone and exits with code 2.
    """


class OtherProcessError(DrLLMError):
    """Another process of the same job failed and says why; this one only stops."""


class Interrupted(BaseException):
    """The run was asked to stop and has saved what it finished; the message says how to go on.

    No `Exception`, for the reason that `KeyboardInterrupt` is none. The command line prints the message and exits
    with code 130.
    """


def check_range(name: str, value: Any, lowest: float, highest: float, *, whole: bool = True) -> None:
    """Refuse a value that is no number, or out of its range.

    Args:
        whole: whether it must be a whole number.

    Raises:
        DrLLMError: it is such a value.
    """
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not lowest <= value <= highest or value == math.inf:
        bounds = f"from {lowest:.15g} to {highest:.15g}" if highest < math.inf else f"of at least {lowest:g}"
        number = "whole number" if whole else "number"
        raise DrLLMError(f"{name} must be a {number} {bounds}, but {reprlib.repr(value)} was given; correct it.")


def first_sentence(error: BaseException, *, with_kind: bool = False) -> str:
    """What a library's error says, short and without tokens, to stand in a sentence; its class where it says nothing.

    Args:
        with_kind: put the class before it, where messages alone do not tell what went wrong.
    """
    kind = type(error).__name__
    lines = str(error).strip().splitlines() or [""]
    said = without_tokens(lines[0].split(". ")[0].rstrip(" .:"))[:200]
    if not said:
        return kind
    return f"{kind}: {said}" if with_kind else said


@contextmanager
def refusing(
    what: str, do: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception, *, with_kind: bool = False
) -> Iterator[None]:
    """Make what a library raises inside the `with` block a refusal: "WHAT (what it says); DO."

    Args:
        kinds: of errors. A `DrLLMError` stays as it is.
        with_kind: see `first_sentence`.

    Raises:
        DrLLMError: as said.
    """
    try:
        yield
    except DrLLMError:
        raise
    except kinds as error:
        raise DrLLMError(f"{what} ({first_sentence(error, with_kind=with_kind)}); {do}.") from error


def without_tokens(text: str) -> str:
    """`text` without anything that is, or looks like, an access token of the Hub."""
    from huggingface_hub import get_token  # takes a while, and only errors need it

    token = get_token()
    return _TOKEN.sub("[token]", text.replace(token, "[token]") if token else text)
