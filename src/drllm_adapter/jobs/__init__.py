"""Long work that several processes share, that survives being killed, and that says how far it is.

A job is cut into numbered pieces. Every finished piece is a shard on disk; a process claims a piece before it works on
it, and a claim dies with its process. Nothing here knows what the pieces are: a bundle of a search, a batch of an
evaluation or of features.
"""

from .folder import BEGUN, hold_folder, is_unfinished, open_folder
from .locks import Locks
from .processes import ALONE, Processes
from .progress import JobProgress, job_progress
from .shards import Shards
from .stopping import Stop, stop_on_signals
from .tracking import track
from .work import work_through

__all__ = [
    "ALONE",
    "BEGUN",
    "JobProgress",
    "Locks",
    "Processes",
    "Shards",
    "Stop",
    "hold_folder",
    "is_unfinished",
    "job_progress",
    "open_folder",
    "stop_on_signals",
    "track",
    "work_through",
]
