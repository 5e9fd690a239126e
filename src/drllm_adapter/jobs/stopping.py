"""Ctrl-C and SIGTERM: the first one lets the piece in flight finish, a second one stops at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import Interrupted

# A launcher passes on the Ctrl-C that its processes have received from the terminal already.
_SAME_SIGNAL_S = 2.0


class Stop:
    """Whether the run was asked to stop."""

    def __init__(self, in_flight: str, loud: bool) -> None:
        self.asked = False
        self._in_flight, self._loud = in_flight, loud
        self._since = 0.0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
            if self._loud:
                # Not print: the signal may have come in the middle of one.
                os.write(2, f"\ndrllm: stopping after the {self._in_flight} in flight; again stops now.\n".encode())
        elif time.monotonic() - self._since > _SAME_SIGNAL_S:
            raise Interrupted(f"stopped at once; the {self._in_flight} in flight is lost, what was finished is saved.")


@contextmanager
def stop_on_signals(in_flight: str, *, loud: bool = True) -> Iterator[Stop]:
    """Inside the `with` block, SIGINT and SIGTERM only set `asked`; outside the main thread nothing changes.

    Args:
        in_flight: what is finished first, for the notice on stderr.
        loud: whether to write that notice.
    """
    stop = Stop(in_flight, loud)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
