"""The output folder of a job: what it is for, who may write to it, and what was begun in it."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DrLLMError, OtherProcessError
from ..files import MARKER, check_claim, claim_folder, folder_kind, write_json_atomic
from .locks import Locks
from .processes import Processes

LOCK = ".lock"
BEGUN = "begun.json"
"""What a run is about, in its folder until it is finished, where no other file says so."""


def is_unfinished(folder: str | os.PathLike[str], begun_as: str, finished_as: str) -> bool:
    """Whether there is something to go on with; the two files are those of `open_folder`."""
    return (Path(folder) / begun_as).exists() and not (Path(folder) / finished_as).exists()


@contextmanager
def open_folder(
    path: str | os.PathLike[str],
    kind: str,
    begun_as: str,
    info: dict[str, Any],
    *,
    resume: bool,
    processes: Processes,
    finished_as: str,
    refuse_finished: bool = True,
    refusals: Mapping[str, str] | None = None,
) -> Iterator[Locks]:
    """Claim the folder for this job inside the `with` block; the locks of its pieces.

    The main process claims it and the others join. When the main one leaves the block the job is over, and then only do
    the others leave it. A run that is refused before it has made anything leaves no trace.

    Args:
        kind: what the folder's marker says it holds.
        begun_as: file in the folder that says what was begun.
        info: what this run is about; `resume` needs it to be what was begun.
        resume: go on in a folder that an earlier run left.
        finished_as: file in the folder that says that there is nothing to go on with.
        refuse_finished: with `resume`; False when going on with a finished job does no harm.
        refusals: for values of `info` that tell people nothing, what a difference is refused with; `{folder}` in it
            stands for the folder.

    Raises:
        DrLLMError: another run writes to the folder; it holds something else, or something of this kind without
            `resume`; what was begun in it differs from `info`; it cannot be written.
    """
    folder = Path(path)
    is_new, held = not folder.exists(), False

    def claim() -> None:
        if folder_kind(folder) != kind:
            claim_folder(folder, kind, resume=resume)

    def begin() -> None:
        finished = (folder / finished_as).exists()
        check_claim(
            folder,
            kind,
            resume=resume or not ((folder / begun_as).exists() or (finished and refuse_finished)),
            unfinished=is_unfinished(folder, begun_as, finished_as),
        )
        if finished and refuse_finished:
            raise DrLLMError(
                f"only an interrupted run can be gone on with, but the one in {folder} is finished; choose another "
                f"folder for a new one."
            )
        if not (folder / begun_as).exists():
            write_json_atomic(folder / begun_as, info)
        check_same(folder, begun_as, info, refusals)

    processes.from_main(claim)
    try:
        with hold_folder(folder, processes, begin) as locks:
            held = True
            check_same(folder, begun_as, info, refusals)
            yield locks
    except DrLLMError:
        if held and processes.count == 1:
            _abandon(folder, begun_as, is_new)
        raise


@contextmanager
def hold_folder(folder: Path, processes: Processes, begin: Callable[[], None]) -> Iterator[Locks]:
    """Keep other runs out of the folder, which exists, inside the `with` block; the locks of the job's pieces.

    When the main process leaves the block the job is over, and then only do the others leave it.

    Args:
        begin: what the main process does as soon as the folder is its own, before any process enters the block.

    Raises:
        DrLLMError: another run writes to the folder; `begin` raised one; or the main process stopped early.
    """
    mine: list[Locks] = []

    def take() -> None:
        locks = Locks(folder / LOCK)
        try:
            locks.take_run()
        except DrLLMError:
            locks.close()
            raise
        try:
            begin()
        except DrLLMError:
            locks.remove()
            raise
        mine.append(locks)

    processes.from_main(take)
    locks = mine[0] if processes.is_main else Locks(folder / LOCK)
    try:
        # Only now, with every process's hand on the lock file, may the main one begin: it removes the file at the end.
        processes.meet()
        yield locks
        if not processes.is_main:
            locks.wait_for_run()
            if (folder / LOCK).exists():
                raise OtherProcessError("the main process must end last, but it stopped early; go on with --resume.")
    except BaseException:
        # Other processes may still finish their pieces; the file keeps a later run from taking these up as well.
        if processes.count > 1:
            locks.close()
        else:
            locks.remove()
        raise
    if processes.is_main:
        locks.remove()
    else:
        locks.close()


def _abandon(folder: Path, begun_as: str, is_new: bool) -> None:
    """Leave nothing of a run that has made nothing."""
    if {path.name for path in folder.iterdir()} <= {MARKER, begun_as}:
        for name in (begun_as, MARKER):
            (folder / name).unlink(missing_ok=True)
        if is_new:
            folder.rmdir()


def check_same(folder: Path, begun_as: str, info: dict[str, Any], refusals: Mapping[str, str] | None = None) -> None:
    """Refuse to go on with something else than what was begun.

    Raises:
        DrLLMError: names the first difference.
    """
    path = folder / begun_as
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        raise DrLLMError(f"{path} must say what was begun in {folder}, but it is damaged; begin in another folder.")
    for name, value in json.loads(json.dumps(info)).items():
        if begun.get(name) == value:
            continue
        if refusals is not None and name in refusals:
            raise DrLLMError(refusals[name].format(folder=folder))
        name, before, now = _first_difference(name, begun.get(name), value)
        raise DrLLMError(
            f"the run in {folder} must go on as it began, with {name} {before!r}, but {now!r} was given; repeat the "
            f"first command or choose another folder."
        )


def _first_difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The values themselves, or of two groups of settings the first that differs, with its own name."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return name, before, now
    inner = next(inner for inner in [*now, *before] if before.get(inner) != now.get(inner))
    return _first_difference(inner, before.get(inner), now.get(inner))
