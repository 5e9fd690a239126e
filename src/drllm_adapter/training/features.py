"""What the routers read, on disk: the features of a supervision set, collected once and trained on many times."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DrLLMError
from ..files import claim_folder, write_json_atomic, writing
from ..jobs import BEGUN, Locks, Processes, Shards, hold_folder

FOLDER_KIND = "router features"
FORMAT = 1
_MEANS, _WINDOWS, _LABELS, _MANIFEST = ("means.npy", "windows.npy", "labels.npy", "manifest.json")
_BATCHES = "batches"


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
    """Writes the features of batches of questions; made by `write_features`.

    What was written has a shard with the numbers of windows; the features themselves lie in their place in the
    file that the store maps. So batches may come from several processes, and those of an interrupted run are kept.
    """

    def __init__(self, folder: Path, start: int, shape: tuple[int, int, int, int], locks: Locks) -> None:
        self.shards, self.locks = Shards(folder / _BATCHES, ".json"), locks
        self._path, self._start, self._shape = folder / _MEANS, start, shape

    def write(self, row: int, means: NDArray[np.float32], windows: int) -> None:
        """Store one question: its window means [R, K, d], of which the first `windows` are used."""
        features = np.array(means, dtype=np.float32, order="C")
        assert features.shape == self._shape[1:]
        features[:, windows:] = 0.0
        # Rows go through the file and not through a map, where a full disk would kill the process.
        with open(self._path, "r+b") as file:
            file.seek(self._start + row * features.nbytes)
            file.write(features.data)

    def piece(self, batches: Iterable[tuple[Sequence[int], Tensor, Tensor]]) -> bytes:
        """Store batches of questions: rows, means [B, R, K, d], windows [B]; the content of their shard.

        Raises:
            DrLLMError: the disk is full.
        """
        stored: dict[str, list[int]] = {"rows": [], "windows": []}
        for rows, means, windows in batches:
            with writing(self._path.parent):
                for row, features, count in zip(rows, means.numpy(), windows.tolist(), strict=True):
                    self.write(row, features, count)
            stored["rows"] += rows
            stored["windows"] += windows.tolist()
        with writing(self._path.parent), open(self._path, "rb") as file:
            os.fsync(file.fileno())
        return json.dumps(stored).encode()

    def windows(self) -> NDArray[np.int64] | None:
        """int64 [N] of all questions; None when a batch is missing or its shard was damaged (and is now set aside)."""
        windows = np.zeros(self._shape[0], dtype=np.int64)
        for path in self.shards.finished().values():
            if (content := self.shards.read(path)) is not None:
                batch = json.loads(content)
                windows[batch["rows"]] = batch["windows"]
        return windows if windows.all() else None


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
    batch_size: int,
    description: Mapping[str, Any],
    processes: Processes,
) -> Iterator[FeatureWriter]:
    """Give a writer for a new store; the store is usable once the `with` block is left without an error.

    The manifest is written last, so a run that is killed leaves no usable store; its batches are kept for the next run
    with the same key and batch size.

    Args:
        folder: new, empty or an earlier feature folder, whose store is replaced.
        key, ids, labels, layers: as in `FeatureStore`.
        windows, width: K and d.
        batch_size: questions a batch.
        description: what people may want to know about the store, kept in the manifest.
        processes: this one among those that fill the store.

    Raises:
        DrLLMError: the folder belongs to something else, another run writes to it, or the disk is full.
    """
    folder = Path(folder)
    shape = (len(ids), len(layers), windows, width)
    begun = {"key": key, "batch_size": batch_size}

    @contextmanager
    def leaving_nothing() -> Iterator[None]:
        """Remove what there is when this process fails, unless others may still go on."""
        try:
            yield
        except DrLLMError:
            if processes.count == 1:
                with suppress(OSError):
                    _remove(folder)
            raise

    def begin() -> None:
        with leaving_nothing(), writing(folder):
            if _read_json(folder / BEGUN) != begun or not (folder / _MEANS).exists():
                # Unlinked, not overwritten: a process that still has the old store mapped goes on reading it.
                _remove(folder)
                _check_space(folder, int(np.prod(shape)) * np.dtype(np.float32).itemsize)
                np.lib.format.open_memmap(folder / _MEANS, mode="w+", dtype=np.float32, shape=shape)
                write_json_atomic(folder / BEGUN, begun)

    processes.from_main(lambda: claim_folder(folder, FOLDER_KIND, resume=True))
    with hold_folder(folder, processes, begin) as locks, leaving_nothing():
        start = np.lib.format.open_memmap(folder / _MEANS, mode="r").offset
        writer = FeatureWriter(folder, start, shape, locks)
        yield writer
        if processes.is_main:
            used = writer.windows()
            assert used is not None
            with writing(folder):
                np.save(folder / _WINDOWS, used)
                np.save(folder / _LABELS, labels)
                write_json_atomic(
                    folder / _MANIFEST,
                    {"format": FORMAT, "key": key, "layers": list(layers), **description, "ids": list(ids)},
                )
                (folder / BEGUN).unlink()
                shutil.rmtree(folder / _BATCHES)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _remove(folder: Path) -> None:
    for name in (_MANIFEST, BEGUN, _MEANS, _WINDOWS, _LABELS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / _BATCHES, ignore_errors=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DrLLMError(
            f"the features need {needed / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB are free; free some space, "
            f"choose another folder or train on fewer questions."
        )
