"""What is imitated: a question and a path each. Of a set of any size the paths that were tried are read and let go."""

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import repeat
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..decisions import Decisions
from ..errors import DrLLMError
from .labels import Labels, choose_labels
from .rows import SCHEMA, Row, iterate_rows, row_of

_ROWS_AT_ONCE = 128


class ExampleRows(Sequence[Row]):
    """The row of every example, without the paths that were tried; in a file that is mapped into memory.

    Args:
        rows: with their paths.
        counts: filled with the number of examples of each row while `rows` is gone through; a row of none is left out.
    """

    def __init__(self, rows: Iterable[Row], counts: Sequence[int]) -> None:
        # Without a name: it is gone with the process, whatever ends that; the map outlives the closed file.
        with tempfile.TemporaryFile() as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                waiting: list[dict[str, Any]] = []
                for place, row in enumerate(rows):
                    if counts[place]:
                        waiting.append(asdict(replace(row, paths=(), decisions=None)))
                    if len(waiting) == _ROWS_AT_ONCE:
                        writer.write_table(pa.Table.from_pylist(waiting, schema=SCHEMA))
                        waiting = []
                writer.write_table(pa.Table.from_pylist(waiting, schema=SCHEMA))
            file.flush()
            self._table = pa.ipc.open_file(pa.memory_map(f"/dev/fd/{file.fileno()}")).read_all()
        self._counts = np.array([count for count in counts if count], dtype=np.int32)
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        row = int(np.searchsorted(self._ends, place % len(self), side="right"))
        return row_of(self._table.slice(row, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Row]:
        counts = iter(self._counts.tolist())
        for batch in self._table.to_batches():
            for item in batch.to_pylist():
                yield from repeat(row_of(item), next(counts))


class Prompts(Sequence[str]):
    """The prompts of rows, read as they are needed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._rows[place].prompt

    def __iter__(self) -> Iterator[str]:
        return (row.prompt for row in self._rows)


def read_examples(
    source: str | os.PathLike[str], labels: Labels | None, name: str | os.PathLike[str]
) -> tuple[ExampleRows, NDArray[np.int8], NDArray[np.float32] | None]:
    """What to imitate: a question and a path each, and how much each counts; None where all count alike.

    Args:
        source: see `iterate_rows`.
        labels: None learns what the rows were labelled with.
        name: of the set, for messages.

    Returns:
        Rows, int8 [N, L] and float32 [N].

    Raises:
        DrLLMError: no row has a label, or see `iterate_rows`.
    """
    counts, weights, paths = array("i"), array("f"), bytearray()

    def reading() -> Iterator[Row]:
        for row in iterate_rows(source):
            chosen = chosen_of(row, labels)
            counts.append(len(chosen))
            for decisions, weight in chosen:
                paths.extend(decisions)
                weights.append(weight)
            yield row

    rows = ExampleRows(reading(), counts)
    if not len(rows):
        raise DrLLMError(
            f"the supervision set {name} must hold at least one question with a "
            f"{labels.rule + ' ' if labels else ''}label, but none of its {len(counts)} has one; search more questions "
            f"or choose another rule."
        )
    how_much = np.array(weights)
    decisions = np.frombuffer(paths, dtype=np.int8).reshape(len(rows), -1)
    return rows, decisions, None if (how_much == 1).all() else how_much


def chosen_of(row: Row, labels: Labels | None) -> list[tuple[Decisions, float]]:
    """The paths of a row that are imitated, and their weights; None learns what it was labelled with."""
    if labels is None:
        return [] if row.decisions is None else [(row.decisions, 1.0)]
    return choose_labels(row.paths, labels.rule, labels.price)
