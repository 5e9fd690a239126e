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

from ..decisions import CLASS_NAMES, ScoredPath
from ..errors import DrLLMError, refusing
from ..files import folder_kind, replacing
from ..tasks import Prompt

KIND = "supervision set"
DATA = Path("data") / "train-00000-of-00001.parquet"
INFO = "search.json"


@dataclass(frozen=True)
class Row:
    """One question and every path tried on it.

    Attributes:
        id, task: of the question; ids are unique in a set.
        mode: "letter", "cloze", "free" or "self".
        prompt: the text that routers read; `templated` when a chat template made it, special tokens included.
        continuations, answer_index: the texts scored after the prompt, and which of them is right; None for a free
            answer.
        reference: in the mode "self" the token ids of the base model's own continuation; None in others.
        answer: the text of the right answer, or of the reference.
        level: difficulty where the task has one.
        score: what a path's probability is: "choices" (softmax over the choices) or "reference" (geometric mean over
            the reference's tokens).
        base_correct: whether the base model's own path was right; in the mode "self" it is.
        decisions: the label under the rule of the search; None when the rule drops the question.
        paths: every path tried, in that order; the first is the base model's.
        simulations, seed: of the search.
        base_model, base_revision: what was searched.
        search: what else `search.json` says, as JSON, so that a row can be trained on wherever it ends up.
    """

    id: str
    task: str
    mode: str
    prompt: str
    templated: bool
    continuations: tuple[str, ...]
    reference: tuple[int, ...] | None
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
    search: str

    def to_prompt(self) -> Prompt:
        """The question as it was put to the model, so that a set can score other paths.

        Raises:
            DrLLMError: the answer is free; generated answers need the question itself.
        """
        if self.reference is not None:
            return Prompt(
                self.prompt, self.templated, self.continuations, self.answer, self.mode,
                max_new_tokens=len(self.reference), reference=self.reference,
            )  # fmt: skip
        if self.answer_index is None:
            raise DrLLMError(
                f"only questions with choices can be scored again from a supervision set, but {self.id!r} has a free "
                f"answer; search with --mode contrast."
            )
        return Prompt(self.prompt, self.templated, self.continuations, self.answer_index, self.mode, max_new_tokens=1)


_PATH = pa.struct(
    [
        ("decisions", pa.list_(pa.int8())),
        ("probability", pa.float64()),
        ("correct", pa.bool_()),
        ("agreement", pa.float64()),
        ("kl", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("mode", pa.string()),
        ("prompt", pa.string()),
        ("templated", pa.bool_()),
        ("continuations", pa.list_(pa.string())),
        ("reference", pa.list_(pa.int64())),
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
        ("search", pa.string()),
    ]
)
# The fields of `search.json` that hold for every row, and are kept with each.
_OF_EVERY_ROW = ("search", "rule", "price", "mode", "grader", "sources", "num_blocks", "base_fingerprint", "dtype")


def search_column(info: Mapping[str, Any]) -> str:
    """The field `search` of a row."""
    return json.dumps({name: info[name] for name in _OF_EVERY_ROW if name in info}, sort_keys=True)


_NOTE = b"drllm"
_ROWS_AT_ONCE = 256


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
    """The rows of one Parquet file, a few in memory at a time.

    Raises:
        DrLLMError: the file is missing or damaged, or does not hold such rows.
    """
    for table in _tables(path):
        yield from map(row_of, table.to_pylist())


def _tables(path: str | os.PathLike[str]) -> Iterator[pa.Table]:
    """The rows of one Parquet file as `SCHEMA` has them, in parts."""
    with (
        refusing(
            f"{path} must be a Parquet file of supervision rows, but reading it failed",
            "search these questions again",
            (OSError, pa.ArrowException, ValueError),
        ),
        pq.ParquetFile(path) as file,
    ):
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            yield _conformed(pa.Table.from_batches([batch]))


def label_counts(path: str | os.PathLike[str], num_blocks: int) -> NDArray[np.int64]:
    """How many labels of a Parquet file skip, execute and repeat each block, `[num_blocks, 3]`; reads nothing else."""
    counts = np.zeros((num_blocks, len(CLASS_NAMES)), dtype=np.int64)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["decisions"]):
            labels = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, num_blocks)
            counts += np.stack([(labels == value).sum(axis=0) for value in range(len(CLASS_NAMES))], axis=1)
    return counts


def read_rows(folder: str | os.PathLike[str]) -> list[Row]:
    """All rows of a finished supervision set; `iterate_rows` takes less memory."""
    return list(iterate_rows(folder))


class Rows(Iterable[Row]):
    """The rows of a supervision set, read anew each time that they are gone through; see `iterate_rows`."""

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Row]:
        return iterate_rows(self._source)

    def prompts(self) -> Iterator[tuple[str, str]]:
        """Id and prompt of every row, without making objects of the paths."""
        for table in _tables_of(self._source):
            yield from zip(table["id"].to_pylist(), table["prompt"].to_pylist(), strict=True)


def iterate_rows(source: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of a supervision set, one after another.

    Args:
        source: folder that a search wrote, or any folder of Parquet files or Parquet file with such rows, as the
            `datasets` library leaves them after mixing, filtering, downloading.

    Raises:
        DrLLMError: there are no such rows, the search was not finished, or a file is damaged.
    """
    for table in _tables_of(source):
        yield from map(row_of, table.to_pylist())


def check_rows(source: str | os.PathLike[str]) -> None:
    """Read a supervision set to its end, without making objects of its rows.

    Raises:
        DrLLMError: as `iterate_rows`.
    """
    for _ in _tables_of(source):
        pass


def _tables_of(source: str | os.PathLike[str]) -> Iterator[pa.Table]:
    if folder_kind(source) == KIND:
        read_search_info(source)  # a set whose notes are damaged is damaged
    for path in _files(source):
        yield from _tables(path)


def read_search_info(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What was searched and how: the constants, the label rule, the base model and its fingerprint.

    Args:
        source: as for `iterate_rows`. Where a search has left its own notes they are read, else what the rows say;
            a constant in which the rows differ is left out, or None.

    Raises:
        DrLLMError: there are no such rows, or they were searched with different base models.
    """
    path = Path(source) / INFO
    if folder_kind(source) != KIND or not path.exists():
        return _info_of_rows(source)
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DrLLMError(f"{path} must be JSON, but it is damaged; search these questions again.") from error
    if not isinstance(info, dict):
        raise DrLLMError(f"{path} must be a JSON object, but it is not; search these questions again.")
    return info


def _files(source: str | os.PathLike[str]) -> list[Path]:
    """The Parquet files of a set; of several splits only the training split."""
    source = Path(source)
    if folder_kind(source) == KIND and not (source / DATA).exists():
        raise DrLLMError(
            f"the supervision set {source} must be finished, but its search was interrupted; go on with "
            f"drllm search --resume."
        )
    files = [source] if source.suffix == ".parquet" else sorted(source.rglob("*.parquet"))
    training = [path for path in files if "train" in path.name]
    if not files or not files[0].is_file():
        there = "is a folder" if source.is_dir() else "is a file"
        found = f"{there} of something else" if source.exists() else "is not there"
        raise DrLLMError(
            f"{source} must be a supervision set, a folder that drllm search wrote or Parquet of its rows, but it "
            f"{found}; correct the name."
        )
    return training or files


def _info_of_rows(source: str | os.PathLike[str]) -> dict[str, Any]:
    seen: dict[tuple[str, str, str | None], None] = {}
    for path in _files(source):
        seen.update(dict.fromkeys(_different(path, ("search", "base_model", "base_revision"))))
    if not seen:
        raise DrLLMError(f"{source} must have rows to train on, but it has none; filter less.")
    infos = [
        {**json.loads(search or "{}"), "base_model": model, "base_revision": revision}
        for search, model, revision in seen
    ]
    same_base = "base_fingerprint" if all(info.get("base_fingerprint") for info in infos) else "base_model"
    different = {info[same_base]: info["base_model"] for info in infos}
    if len(different) > 1:
        raise DrLLMError(
            f"the rows of {source} must be searched with one base model, but they were with {len(different)} "
            f"({', '.join(f'{name} ({mark})' for mark, name in different.items())}); filter them to one."
        )
    first = infos[0]
    info: dict[str, Any] = {
        name: first.get(name) if all(other.get(name) == first.get(name) for other in infos) else None
        for name in ("rule", "price", "mode", "grader", "num_blocks", "base_fingerprint", "base_revision", "dtype")
    }
    searches = [other.get("search", {}) for other in infos]
    info["base_model"] = first["base_model"]
    info["search"] = {
        name: value
        for name, value in searches[0].items()
        if all(name in other and other[name] == value for other in searches)
    }
    sources = [source for other in infos for source in other.get("sources", [])]
    info["sources"] = [source for place, source in enumerate(sources) if source not in sources[:place]]
    return info


def _different(path: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The different values of these columns of a Parquet file, of which no other column is read."""
    with refusing(
        f"{path} must be a Parquet file of supervision rows, but reading it failed",
        "download or search it again",
        (OSError, pa.ArrowException),
    ):
        with pq.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names)
            there = [name for name in names if name in file.schema_arrow.names]
            seen: dict[tuple[Any, ...], None] = {}
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=there):
                table = pa.Table.from_batches([batch]).group_by(there).aggregate([])
                columns = [table[name].to_pylist() if name in there else [""] * len(table) for name in names]
                seen.update(dict.fromkeys(zip(*columns, strict=True)))
        yield from seen


# Columns that rows of earlier versions do not have, and what stands for them.
_ADDED = {"search": "", "reference": None}


def _check_columns(names: Sequence[str]) -> None:
    optional = _ADDED if "paths" in names else {}
    missing = [name for name in SCHEMA.names if name not in names and name not in optional]
    if missing:
        raise DrLLMError(
            f"a supervision row must have the fields {', '.join(SCHEMA.names)}, but {', '.join(missing)} is missing; "
            f"keep these columns when you change a set."
        )


def _conformed(table: pa.Table) -> pa.Table:
    """The columns of `SCHEMA`, whatever was added, and whatever the order and the widths of numbers have become."""
    _check_columns(table.column_names)
    for name, value in _ADDED.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * len(table), SCHEMA.field(name).type))
    return table.select(SCHEMA.names).cast(SCHEMA)


def row_of(item: dict[str, Any]) -> Row:
    """A row of plain values, as pyarrow gives it."""
    paths: Sequence[dict[str, Any]] = item.pop("paths")
    decisions = item.pop("decisions")
    continuations, reference = item.pop("continuations"), item.pop("reference")
    return Row(
        **item,
        continuations=tuple(continuations),
        reference=None if reference is None else tuple(reference),
        decisions=None if decisions is None else tuple(decisions),
        paths=tuple(
            ScoredPath(
                tuple(path["decisions"]),
                float(path["probability"]),
                bool(path["correct"]),
                path["agreement"],
                path["kl"],
            )
            for path in paths
        ),
    )
