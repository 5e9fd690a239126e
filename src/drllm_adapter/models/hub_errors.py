"""What the Hub and the network answer, as one sentence that names the repository and says what to do."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import DrLLMError, first_sentence, without_tokens

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def explained(repo: str, doing: str) -> Iterator[None]:
    """Turn what the Hub and the network do wrong inside the `with` block into a `DrLLMError`.

    The block calls the client libraries and does nothing else: its mistakes would be taken for the network's. Anything
    that these do not raise passes, with its traceback.

    Args:
        repo: what the sentence names.
        doing: "uploaded", "downloaded": what could not be done with it.

    Raises:
        DrLLMError: the Hub, the network or the disk failed.
    """
    try:
        yield
    except DrLLMError:
        raise
    except Exception as error:
        if not any(map(_is_of_clients, _causes(error))):
            raise
        expected, what_to_do = _explain(error, doing)
        sentence = f"{repo} could not be {doing}, because {expected}; {what_to_do}."
        raise DrLLMError(without_tokens(sentence)) from None


def _explain(error: BaseException, doing: str) -> tuple[str, str]:
    """Why, and what to do about it."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return (
                f"there is no room on the disk ({os.strerror(cause.errno)})",
                "free some space, or set HF_HOME to a folder on another disk",
            )
    for cause in chain:
        if isinstance(cause, GatedRepoError):
            return (
                "its owner decides who may read it and this account may not",
                f"ask for access on its page and {_LOG_IN}",
            )
        if isinstance(cause, RevisionNotFoundError):
            return "it has no such branch, tag, commit or pull request", "correct what stands behind the @"
        if isinstance(cause, RepositoryNotFoundError):
            return (
                "it is neither a folder here nor a repository on the Hub that this account may see",
                f"correct the name, or, if it is private, {_LOG_IN}",
            )
        if isinstance(cause, HFValidationError):
            return "that is not a name a repository can have", "name it as owner/name"
        if isinstance(cause, OfflineModeIsEnabled):
            return _NOT_HERE_OFFLINE
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return _explain_status(cause.response.status_code, cause.response.headers.get("Retry-After"), doing)
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return "a file that it must have is missing there", "ask its owner, or correct the name"
    if isinstance(error, LocalEntryNotFoundError) and len(chain) == 1:
        return _NOT_HERE_OFFLINE
    return (
        f"the connection failed ({first_sentence(chain[-1], with_kind=True)})",
        "look at the network and try again" if doing == "downloaded" else _PUSH_AGAIN,
    )


_PUSH_AGAIN = (
    "push again: what was uploaded is not uploaded twice, and the repository changes in one step or not at all"
)
_NOT_HERE_OFFLINE = (
    "it is not complete in the cache and the Hub is not asked (HF_HUB_OFFLINE, or only local files)",
    "load it once with the network on",
)


def _explain_status(status: int, retry_after: str | None, doing: str) -> tuple[str, str]:
    again = "try again" if doing == "downloaded" else _PUSH_AGAIN
    if status == 401:
        return "the Hub does not know this account (HTTP 401)", _LOG_IN
    if status == 403:
        return "this account or its token may not do that (HTTP 403)", "use a token that may write there"
    if status in (409, 412):
        return f"somebody else changed it at the same time (HTTP {status})", "look at what is there now and push again"
    if status == 404:
        return "the Hub has nothing of that name (HTTP 404)", f"correct the name, or {_LOG_IN}"
    if status == 429:
        wait = f"wait {retry_after} seconds" if retry_after and retry_after.isdigit() else "wait some minutes"
        return "the Hub asks to slow down (HTTP 429)", f"{wait}, then {again}"
    if status in (413, 507):
        return f"there is no room for it (HTTP {status})", "look at the storage of the account"
    if status >= 500:
        return f"the Hub itself failed (HTTP {status})", f"wait a little, then {again}"
    return f"the Hub answered with HTTP {status}", again


# The Hub's library and the HTTP client that it is built on, which differs between its versions.
_CLIENTS = {kind.__module__.partition(".")[0] for kind in HfHubHTTPError.__mro__} - {"builtins"}


def _is_of_clients(error: BaseException) -> bool:
    # hf_xet raises RuntimeError; an answer that is no JSON is some other server's, such as that of a hotel's network.
    if isinstance(error, (OSError, json.JSONDecodeError)) or type(error) is RuntimeError:
        return True
    return any(kind.__module__.partition(".")[0] in _CLIENTS for kind in type(error).__mro__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
