"""What the routers read, on disk: the features of a supervision set, collected once and trained on many times."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DrLLMError
from ..files import claim_folder, write_json_atomic

FOLDER_KIND = "router features"
FORMAT = 1
_MEANS, _WINDOWS, _LABELS, _MANIFEST = ("means.npy", "windows.npy", "labels.npy", "manifest.json")


@dataclass(frozen=True)
class FeatureStore:
    """The features of N questions: for each block that has a router, what that router reads.

    Attributes:
        means: float32 [N, R, K, d], mean hidden state of each of the K prompt windows; usually memory-mapped. Windows
            that a question does not use are zero.
        windows: int64 [N], how many of the K windows each question uses.
        labels: int8 [N, L], the decision to learn for every block, 0 skip, 1 execute, 2 repeat.
        ids: the N question ids.
        layers: the R blocks that have routers, ascending; `means[:, i]` belongs to block `layers[i]`.
        key: hash of everything the features depend on.
    """

    means: NDArray[np.float32]
    windows: NDArray[np.int64]
    labels: NDArray[np.int8]
    ids: tuple[str, ...]
    layers: tuple[int, ...]
    key: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def routed_labels(self) -> NDArray[np.int8]:
        """int8 [N, R], the labels of the blocks that have routers."""
        return self.labels[:, list(self.layers)]

    @classmethod
    def find(cls, folder: str | os.PathLike[str], key: str) -> "FeatureStore | None":
        """The finished store in `folder` if it has exactly this key, with `means` memory-mapped; otherwise None."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT or manifest["key"] != key:
                return None
            store = cls(
                means=np.load(folder / _MEANS, mmap_mode="r", allow_pickle=False),
                windows=np.load(folder / _WINDOWS, allow_pickle=False),
                labels=np.load(folder / _LABELS, allow_pickle=False),
                ids=tuple(manifest["ids"]),
                layers=tuple(manifest["layers"]),
                key=key,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = store.means.shape[:2] == (len(store), len(store.layers)) and len(store.labels) == len(store)
        return store if whole else None


class FeatureWriter:
    """Writes the features of questions, in any order of the questions; made by `write_features`."""

    def __init__(self, file: BinaryIO, start: int, shape: tuple[int, int, int, int]) -> None:
        self._file, self._start, self._shape = file, start, shape
        self.windows = np.zeros(shape[0], dtype=np.int64)

    def write(self, row: int, means: NDArray[np.float32], windows: int) -> None:
        """Store one question: its window means [R, K, d], of which the first `windows` are used."""
        features = np.array(means, dtype=np.float32, order="C")
        assert features.shape == self._shape[1:]
        features[:, windows:] = 0.0
        self._file.seek(self._start + row * features.nbytes)
        self._file.write(features.data)
        self.windows[row] = windows


@contextmanager
def write_features(
    folder: str | os.PathLike[str],
    *,
    key: str,
    ids: Sequence[str],
    labels: NDArray[np.int8],
    layers: Sequence[int],
    windows: int,
    width: int,
    description: Mapping[str, Any],
) -> Iterator[FeatureWriter]:
    """Give a writer for a new store; the store is usable once the `with` block is left without an error.

    The manifest is written last, so a run that is killed leaves no usable store.

    Args:
        folder: new, empty or an earlier feature folder, whose store is replaced.
        key, ids, labels, layers: as in `FeatureStore`.
        windows, width: K and d.
        description: what people may want to know about the store, kept in the manifest.

    Raises:
        DrLLMError: the folder belongs to something else, the disk is full, a question was not written, or another
            run took over the folder meanwhile.
    """
    folder = claim_folder(folder, FOLDER_KIND, resume=True)
    shape = (len(ids), len(layers), windows, width)
    means = folder / _MEANS
    ours: os.stat_result | None = None
    finished = False
    try:
        # Unlinked, not overwritten: a process that still has the old store mapped goes on reading it.
        _remove(folder)
        _check_space(folder, int(np.prod(shape)) * np.dtype(np.float32).itemsize)
        start = np.lib.format.open_memmap(means, mode="w+", dtype=np.float32, shape=shape).offset
        # Rows go through the file and not through the map, where a full disk would kill the process.
        with open(means, "r+b") as file:
            ours = os.fstat(file.fileno())
            writer = FeatureWriter(file, start, shape)
            yield writer
            file.flush()
            os.fsync(file.fileno())
            _check_finished(folder, ours, ids, writer.windows)
        np.save(folder / _WINDOWS, writer.windows)
        np.save(folder / _LABELS, labels)
        write_json_atomic(
            folder / _MANIFEST,
            {"format": FORMAT, "key": key, "layers": list(layers), **description, "ids": list(ids)},
        )
        finished = True
    except OSError as error:
        raise DrLLMError(
            f"the features could not be written to {folder} ({error.strerror or error}); free some space or "
            f"choose another folder."
        ) from error
    finally:
        # Only what this run wrote: another run may have taken over the folder.
        if not finished and (ours is None or _is_still(means, ours)):
            with suppress(OSError):
                _remove(folder)


def _remove(folder: Path) -> None:
    for name in (_MANIFEST, _MEANS, _WINDOWS, _LABELS):
        (folder / name).unlink(missing_ok=True)


def _is_still(path: Path, status: os.stat_result) -> bool:
    """Whether the file at `path` is the one that had this status."""
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DrLLMError(
            f"the features need {needed / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB are free; free some space, "
            f"choose another folder or train on fewer questions."
        )


def _check_finished(folder: Path, ours: os.stat_result, ids: Sequence[str], windows: NDArray[np.int64]) -> None:
    if not _is_still(folder / _MEANS, ours):
        raise DrLLMError(
            f"the features in {folder} must come from one run, but another run replaced them meanwhile; give each run "
            f"its own folder."
        )
    if not windows.all():
        raise DrLLMError(
            f"every question needs features, but {ids[int(windows.argmin())]!r} has none; collect the features again."
        )
