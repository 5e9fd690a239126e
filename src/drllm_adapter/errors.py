"""What ends a command: input that the user can mend, another process that failed, a request to stop; and the words
that messages take from others."""


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


def first_sentence(error: BaseException, *, with_kind: bool = False) -> str:
    """What a library's error says, short enough to stand in a sentence: its class where it says nothing.

    Args:
        with_kind: put the class before it, where messages alone do not tell what went wrong.
    """
    kind = type(error).__name__
    lines = str(error).strip().splitlines() or [""]
    said = lines[0].split(". ")[0].rstrip(" .:")[:200]
    if not said:
        return kind
    return f"{kind}: {said}" if with_kind else said
