"""Mini-batches of a feature store: out of memory where the features fit, otherwise read from disk one batch ahead."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .features import FeatureStore

Rows = NDArray[np.int64]
_CHUNK = 32


@dataclass(frozen=True)
class Batch:
    """B questions.

    Attributes:
        rows: int64 [B], their rows in the store.
        means: float32 [R, B, K, d], router first, as the batched product wants it.
        windows: int64 [B].
        labels: int64 [B, R].
    """

    rows: Rows
    means: Tensor
    windows: Tensor
    labels: Tensor


class BatchReader:
    """Reads batches of questions onto a device.

    Features of at most `memory` bytes are held on the device. Larger ones stay on disk: a batch is then B contiguous
    reads of R x K x d floats each, done by a thread while the batch before is worked on, and memory holds two batches.
    Both ways give the same bits.
    """

    def __init__(self, store: FeatureStore, device: torch.device, memory: int) -> None:
        self._store = store
        self.device = device
        self._windows = torch.from_numpy(np.array(store.windows)).to(device)
        self._labels = torch.from_numpy(store.routed_labels.astype(np.int64)).to(device)
        self._resident: Tensor | None = self._load_all() if store.means.nbytes <= memory else None

    def batches(self, groups: Iterable[Rows]) -> Iterator[Batch]:
        """One batch for each group of rows, in order."""
        if self._resident is not None:
            yield from map(self._read, groups)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            pending = None
            for rows in groups:
                following = reader.submit(self._read, rows)
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()

    def _read(self, rows: Rows) -> Batch:
        index = torch.from_numpy(rows).to(self.device)
        means = self._gather(rows).to(self.device) if self._resident is None else self._resident[:, index]
        return Batch(rows=rows, means=means, windows=self._windows[index], labels=self._labels[index])

    def _gather(self, rows: Rows) -> Tensor:
        _, routers, windows, width = self._store.means.shape
        means = np.empty((routers, len(rows), windows, width), dtype=np.float32)
        for place, row in enumerate(rows):
            means[:, place] = self._store.means[row]
        return torch.from_numpy(means)

    def _load_all(self) -> Tensor:
        _, routers, windows, width = self._store.means.shape
        resident = torch.empty(routers, len(self._store), windows, width, device=self.device)
        for start in range(0, len(self._store), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(self._store)))
            resident[:, start : start + len(rows)] = self._gather(rows)
        return resident
