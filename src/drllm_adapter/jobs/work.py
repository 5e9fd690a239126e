"""Several processes working through the pieces of one job: claimed one at a time, so that none idles at the end."""

import time
from collections.abc import Callable, Sequence

from ..errors import Interrupted
from .locks import Locks
from .shards import Shards
from .stopping import Stop

_POLL = 0.2


def work_through(
    pieces: Sequence[int],
    do: Callable[[int], bytes],
    shards: Shards,
    locks: Locks,
    stop: Stop,
    seen: Callable[[], None],
) -> None:
    """Do every piece that has no shard yet, beside whatever other processes do the same; return when all are done.

    A piece is claimed by lock `piece + 1` of the job. A process that dies lets go of its claim, and another takes it.

    Args:
        pieces: in the order to be worked on; the large ones first leave the least to wait for at the end.
        do: works on one piece and gives the content of its shard.
        seen: called after every piece of this process, and now and then while others finish theirs.

    Raises:
        Interrupted: the run was asked to stop.
        DrLLMError: the disk is full or the folder cannot be written.
    """
    left = list(pieces)
    while True:
        finished = shards.finished()
        left = [piece for piece in left if piece not in finished]
        if not left:
            return
        if stop.asked:
            raise Interrupted(f"stopped with {len(left)} of {len(pieces)} pieces left")
        piece = next((piece for piece in left if locks.take(piece + 1)), None)
        if piece is None:
            time.sleep(_POLL)
            seen()
            continue
        try:
            # Another process may have finished it, and let go of it, since the shards were listed.
            if piece not in shards.finished():
                shards.write(piece, do(piece))
        finally:
            locks.free(piece + 1)
        seen()
