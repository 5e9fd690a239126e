"""The supervision set: one row a question, in Parquet that plain `datasets.load_dataset(folder)` reads."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..decisions import CLASS_NAMES
from ..errors import DrLLMError
from ..files import folder_kind, replacing
from ..tasks import Prompt
from .tree import ScoredPath

KIND = "supervision set"
DATA = Path("data") / "train-00000-of-00001.parquet"
INFO = "search.json"


@dataclass(frozen=True)
class Row:
    """One question and every path tried on it.

    Attributes:
        id, task: of the question; ids are unique in a set.
        mode: "letter", "cloze" or "free".
        prompt: the text that routers read; `templated` when a chat template made it, special tokens included.
        continuations, answer_index: the texts scored after the prompt, and which of them is right; None for a free
            answer.
        answer: the text of the right answer.
        level: difficulty where the task has one.
        score: what a path's probability is: "choices" (softmax over the choices) or "reference" (geometric mean over
            the reference answer's tokens).
        base_correct: whether the base model's own path was right.
        decisions: the label under the rule of the search; None when the rule drops the question.
        paths: every path tried, in that order; the first is the base model's.
        simulations, seed: of the search.
        base_model, base_revision: what was searched.
    """

    id: str
    task: str
    mode: str
    prompt: str
    templated: bool
    continuations: tuple[str, ...]
    answer_index: int | None
    answer: str
    level: int | None
    score: str
    base_correct: bool
    decisions: tuple[int, ...] | None
    paths: tuple[ScoredPath, ...]
    simulations: int
    seed: int
    base_model: str
    base_revision: str | None

    def to_prompt(self) -> Prompt:
        """The question as it was put to the model, so that a set can score other paths.

        Raises:
            DrLLMError: the answer is free; generated answers need the question itself.
        """
        if self.answer_index is None:
            raise DrLLMError(
                f"only questions with choices can be scored again from a supervision set, but {self.id!r} has a free "
                f"answer; search with --mode contrast."
            )
        return Prompt(self.prompt, self.templated, self.continuations, self.answer_index, self.mode, max_new_tokens=1)


_PATH = pa.struct([("decisions", pa.list_(pa.int8())), ("probability", pa.float64()), ("correct", pa.bool_())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("mode", pa.string()),
        ("prompt", pa.string()),
        ("templated", pa.bool_()),
        ("continuations", pa.list_(pa.string())),
        ("answer_index", pa.int64()),
        ("answer", pa.string()),
        ("level", pa.int64()),
        ("score", pa.string()),
        ("base_correct", pa.bool_()),
        ("decisions", pa.list_(pa.int8())),
        ("paths", pa.list_(_PATH)),
        ("simulations", pa.int64()),
        ("seed", pa.int64()),
        ("base_model", pa.string()),
        ("base_revision", pa.string()),
    ]
)


_NOTE = b"drllm"


def encode_shard(rows: Iterable[Row], note: Mapping[str, Any]) -> bytes:
    """A shard: Parquet with a JSON note about its rows."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_NOTE: json.dumps(note)}), content)
    return content.getvalue()


def shard_note(content: bytes) -> dict[str, Any]:
    """The note of a shard, without reading its rows."""
    note: dict[str, Any] = json.loads(pq.read_schema(io.BytesIO(content)).metadata[_NOTE])
    return note


def shard_table(content: bytes) -> pa.Table:
    """The rows of a shard, as `SCHEMA` has them."""
    return pq.read_table(io.BytesIO(content)).replace_schema_metadata(None).cast(SCHEMA)


def write_tables(path: str | os.PathLike[str], tables: Iterable[pa.Table]) -> None:
    """Write a Parquet file, whole or not at all, one row group a table; the same rows give the same bytes.

    Raises:
        DrLLMError: the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)


def iterate_file(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of one Parquet file, one row group in memory at a time.

    Raises:
        DrLLMError: the file is missing or damaged, or does not hold such rows.
    """
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield from map(_row, file.read_row_group(group).cast(SCHEMA).to_pylist())
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DrLLMError(
            f"{path} must be a Parquet file of supervision rows, but reading it failed "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); search these questions again."
        ) from error


def label_counts(path: str | os.PathLike[str], num_blocks: int) -> NDArray[np.int64]:
    """How many labels of a Parquet file skip, execute and repeat each block, `[num_blocks, 3]`; reads nothing else."""
    labels = pq.read_table(path, columns=["decisions"])["decisions"].combine_chunks().flatten()
    decisions = labels.to_numpy().reshape(-1, num_blocks)
    return np.stack([(decisions == value).sum(axis=0) for value in range(len(CLASS_NAMES))], axis=1)


def read_rows(folder: str | os.PathLike[str]) -> list[Row]:
    """All rows of a finished supervision set; `iterate_rows` takes less memory."""
    return list(iterate_rows(folder))


def iterate_rows(folder: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of a finished supervision set, one after another.

    Raises:
        DrLLMError: the folder is no supervision set, its search was not finished, or a file is damaged.
    """
    read_search_info(folder)
    if not (Path(folder) / DATA).exists():
        raise DrLLMError(
            f"the supervision set {folder} must be finished, but its search was interrupted; go on with "
            f"drllm search --resume."
        )
    yield from iterate_file(Path(folder) / DATA)


def read_search_info(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What was searched and how: the constants, the label rule, the base model and its fingerprint.

    Raises:
        DrLLMError: the folder is no supervision set.
    """
    path = Path(folder) / INFO
    if folder_kind(folder) != KIND or not path.exists():
        raise DrLLMError(
            f"{folder} must be a supervision set made by drllm search, but it is "
            f"{'a folder of something else' if Path(folder).is_dir() else 'no folder'}; correct the name."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DrLLMError(f"{path} must be JSON, but it is damaged; search these questions again.") from error
    if not isinstance(info, dict):
        raise DrLLMError(f"{path} must be a JSON object, but it is not; search these questions again.")
    return info


def _row(item: dict[str, Any]) -> Row:
    paths: Sequence[dict[str, Any]] = item.pop("paths")
    decisions = item.pop("decisions")
    continuations = item.pop("continuations")
    return Row(
        **item,
        continuations=tuple(continuations),
        decisions=None if decisions is None else tuple(decisions),
        paths=tuple(
            ScoredPath(tuple(path["decisions"]), float(path["probability"]), bool(path["correct"])) for path in paths
        ),
    )
