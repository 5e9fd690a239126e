"""Locks that die with their process: each is one byte of a file that every process of a job opens once."""

import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime, timezone
from pathlib import Path

from ..errors import DrLLMError

RUN = 0
"""The byte that the main process holds while a job runs; the pieces follow from byte 1 on."""

_PATIENCE = 1.0
_POLL = 0.05


class Locks:
    """POSIX record locks on the bytes of one file.

    The kernel frees them when their process ends, however it ends, and they work over NFS, so processes on several
    machines may share a folder. A process must open the file once only: closing any descriptor of it would free all.

    Raises:
        DrLLMError: the file cannot be made, or its file system has no locks.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = self._open()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DrLLMError(
                f"the lock file {self.path} could not be opened ({os.strerror(error.errno or 0)}); choose a folder "
                f"that can be written."
            ) from error

    def take(self, number: int) -> bool:
        """Take lock `number` if no other process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise DrLLMError(
                f"the folder of {self.path} must be on a file system with locks, but it has none "
                f"({os.strerror(error.errno or 0)}); choose a folder on another one."
            ) from error
        return True

    def free(self, number: int) -> None:
        """Give lock `number` back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def take_run(self) -> None:
        """Take the lock of the whole job and write down who has it.

        Raises:
            DrLLMError: another run has it.
        """
        deadline = time.monotonic() + _PATIENCE
        while not (self.take(RUN) and self._is_current()):
            if time.monotonic() > deadline:
                holder = self._holder()
                raise DrLLMError(
                    f"only one run at a time can write to {self.path.parent}, but {holder} is doing so; wait until it "
                    f"has ended, or choose another folder."
                )
            time.sleep(_POLL)
        since = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
        note = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(note).encode(), 0)

    def wait_for_run(self) -> None:
        """Wait until the process that holds the lock of the job has ended the job, or has died."""
        while not self.take(RUN):
            time.sleep(_POLL)
        self.free(RUN)

    def remove(self) -> None:
        """Remove the file and free all locks of this process: the job is over."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Free all locks of this process."""
        os.close(self._file)

    def _is_current(self) -> bool:
        """Whether the file is still the one at the path; the run that had it may have removed it meanwhile."""
        try:
            if os.path.samestat(os.fstat(self._file), self.path.stat()):
                return True
        except FileNotFoundError:
            pass
        os.close(self._file)
        self._file = self._open()
        return False

    def _holder(self) -> str:
        try:
            note = json.loads(os.pread(self._file, 4096, 0))
            return f"process {note['process']} on {note['host']} (since {note['since']})"
        except (ValueError, KeyError, TypeError):
            return "another process"
