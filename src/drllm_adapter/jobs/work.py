"""Several processes working through the pieces of one job: claimed one at a time, so that none idles at the end."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
    seen: Callable[[Mapping[int, Path]], None],
) -> None:
    """Do every piece that has no shard yet, beside whatever other processes do the same; return when all are done.

    A piece is claimed by lock `piece + 1` of the job. A process that dies lets go of its claim, and another takes it.
    The folder is listed once a piece.

    Args:
        pieces: in the order to be worked on; the large ones first leave the least to wait for at the end.
        do: works on one piece and gives the content of its shard.
        seen: called with the shards after every piece of this process, and now and then while others finish theirs.

    Raises:
        Interrupted: the run was asked to stop.
        DrLLMError: the disk is full or the folder cannot be written.
    """
    left = list(pieces)
    while left:
        piece = next((piece for piece in left if locks.take(piece + 1)), None)
        try:
            # Behind the claim: from here on nobody else finishes this piece.
            finished = shards.finished()
            left = [other for other in left if other not in finished]
            if left and stop.asked:
                raise Interrupted(f"stopped with {len(left)} of {len(pieces)} pieces left")
            if piece in left:
                finished[piece] = shards.write(piece, do(piece))
                left.remove(piece)
            elif left and piece is None:
                time.sleep(_POLL)
        finally:
            if piece is not None:
                locks.free(piece + 1)
        seen(finished)
