"""Writing files so that a crash, a full disk or a second run never leaves half of one."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DrLLMError

MARKER = "drllm.json"
EVALUATION, REPORT = "evaluation", "report.json"
"""The kind of an evaluation's folder, in its marker, and what is written into it last."""
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one sentence why nothing could be written inside the `with` block; `path` is what the sentence names.

    Raises:
        DrLLMError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            raise DrLLMError(
                f"{path} could not be written ({os.strerror(error.errno)}); free some space or choose another folder."
            ) from error
        raise


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes `path`'s place in one step, on failure it is removed.

    Raises:
        DrLLMError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        with writing(path):
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            # mkstemp makes files private; what replaces an ordinary file should have an ordinary file's mode.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file that could not be written, and create nothing: for long work that writes at its end.

    Raises:
        DrLLMError: the name is a folder's, or its own folder does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise DrLLMError(f"the output {path} must be a file, but it is a folder; choose another name.")
    if not path.parent.is_dir():
        raise DrLLMError(f"the folder of the output {path} must exist, but it does not; make it or correct the name.")


def claim_folder(path: str | os.PathLike[str], kind: str, *, resume: bool = False) -> Path:
    """Create the output folder of a run, or take over an empty one or (with `resume`) one of the same kind.

    The folder carries a marker file that names what made it, so that no command ever writes into a folder that belongs
    to something else.

    Raises:
        DrLLMError: the folder holds something else, or the same kind of output and `resume` is false.
    """
    path = check_claim(path, kind, resume=resume)
    if folder_kind(path) == kind:
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DrLLMError(
            f"the output folder {path} could not be created ({error.strerror}); choose another folder."
        ) from error
    write_json_atomic(path / MARKER, {"kind": kind})
    return path


def check_claim(path: str | os.PathLike[str], kind: str, *, resume: bool = False, unfinished: bool = False) -> Path:
    """Refuse what `claim_folder` would refuse, and create nothing: for long work that writes at its end.

    Args:
        unfinished: there is something in the folder to go on with, and `resume` would.

    Raises:
        DrLLMError: the folder holds something else, or the same kind of output and `resume` is false.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise DrLLMError(f"the output {path} must be a folder, but it is a file; choose another name.")
    if path.is_dir() and any(path.iterdir()):
        found = folder_kind(path)
        if found != kind:
            raise DrLLMError(
                f"the output folder {path} must be new or empty, but it holds {found or 'something else'}; choose "
                f"another folder."
            )
        if not resume:
            article = "an" if kind[0] in "aeiou" else "a"
            if unfinished:
                found, go_on = f"holds {article} {kind} that is not finished", "go on with --resume or "
            else:
                found, go_on = f"already holds {article} {kind}", ""
            raise DrLLMError(
                f"the output folder {path} must be new or empty, but it {found}; {go_on}choose another folder."
            )
    return path


def folder_kind(path: str | os.PathLike[str]) -> str | None:
    """What the marker file says the folder holds; None without a readable marker."""
    try:
        kind = json.loads((Path(path) / MARKER).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None
