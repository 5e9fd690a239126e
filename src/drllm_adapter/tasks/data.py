"""The rows of files, folders, data sets in memory and on the Hub, each with where it stands.

The format is read from the content: JSON lines, a JSON array or document (pretty-printed or as pandas writes it), CSV,
TSV, Parquet, Arrow, or, in a `.txt` of nothing else, a prompt a line; plain or compressed by gzip, bzip2 or xz; text in
UTF-8, UTF-16 or UTF-32. Bytes that are none of these are refused with file and line, never replaced.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DrLLMError, first_sentence, refusing
from .values import nested, plain

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".bz2", ".xz")
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_REFUSED = {
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it, or compress it by gzip"),
    b"\xd0\xcf\x11\xe0": ("an old Excel file", "save the sheet as CSV"),
}
_SPLIT = re.compile(r"(?<![a-z])(train|test|validation|valid|val)(?![a-z])")
QUESTION_FIELDS = ("question", "query", "problem", "question_stem", "prompt", "messages")
"""Names of the field that a row must have; the first that is there counts."""

Row = tuple[str, Mapping[str, Any] | DrLLMError]
"""Where a row stands, for messages, and its fields, in the types of JSON; or why it has none, with others behind it."""


@dataclass(frozen=True)
class Source:
    """Where a question comes from, for reports and cards.

    Attributes:
        name: of the dataset on the Hub, or of the file without its folder.
        config, split: of a dataset on the Hub; None otherwise.
        hub: `name` is a dataset on the Hub.
    """

    name: str
    config: str | None = None
    split: str | None = None
    hub: bool = False

    @property
    def stem(self) -> str:
        """The name without what says how the file is written: rows without an id are called after it."""
        stem = Path(self.name)
        while stem.suffix in SUFFIXES:
            stem = stem.with_suffix("")
        return stem.stem if self.hub else stem.name


def names_of(data: str) -> list[str]:
    """The names in `--data a, b`; a file whose own name has a comma is one."""
    if Path(data).expanduser().exists():
        return [data]
    names = [name.strip() for name in data.split(",") if name.strip()]
    if not names:
        raise DrLLMError(f"the data must be named, but {data!r} names nothing; give a file or a dataset on the Hub.")
    return names


def rows_of(name: str, split: str | None = None) -> tuple[Source, Iterator[Row]]:
    """The source that a name means, and its rows.

    Args:
        name: a file, a folder that `datasets` saved, or a dataset on the Hub, `name:config` where it has several.
        split: of a dataset; None is "train".

    Raises:
        DrLLMError: there is no such thing, or it cannot be read (also while iterating).
    """
    path = Path(name).expanduser()
    if path.suffix.lower() in SUFFIXES or path.exists() or path.is_absolute() or name.startswith("."):
        return Source(path.name), _folder_rows(path, split) if path.is_dir() else file_rows(path)
    dataset, _, config = name.partition(":")
    split = split or "train"
    return Source(dataset, config or None, split, hub=True), _hub_rows(dataset, config or None, split)


def rows_in_memory(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Rows of a list of mappings, a `datasets.Dataset` or a pandas frame."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a frame, which iterates over its columns
        rows = rows.to_dict("records")
    names = _class_names(getattr(rows, "features", None))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DrLLMError(f"row {number} must be a mapping of fields, but it is a {type(row).__name__}; correct it.")
        yield f"row {number}", _named(plain(row), names)


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, one after another; see `rows_of`."""
    if not path.is_file():
        raise DrLLMError(f"the data file {path} must exist, but it does not; correct the name.")
    with refusing(
        f"the data file {path} must be readable, but reading it failed",
        "correct or replace it",
        (OSError, EOFError, lzma.LZMAError),
    ):
        with _opened(path) as file:
            head = file.read(6)
        with _opened(path) as file:
            for magic, (what, do) in _REFUSED.items():
                if head.startswith(magic):
                    raise DrLLMError(f"the data file {path} must be JSON, CSV or Parquet, but it is {what}; {do}.")
            if head.startswith(b"PAR1") or ".parquet" in path.suffixes:
                yield from _parquet_rows(file, path)
            elif head == b"ARROW1":
                import pyarrow as pa

                table = pa.ipc.open_file(file)
                batches = (table.get_batch(number) for number in range(table.num_record_batches))
                yield from _arrow_rows(batches, table.schema, path)
            else:
                yield from _text_rows(file, head, path)


def _opened(path: Path) -> Any:
    """The file for reading bytes, unpacked."""
    with open(path, "rb") as file:
        head = file.read(6)
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), open)
    return opener(path, "rb")


def _folder_rows(path: Path, split: str | None) -> Iterator[Row]:
    """A split of a folder that `Dataset.save_to_disk` wrote, or whose files are named after their splits."""
    wanted = split or "train"
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        import datasets

        found = datasets.load_from_disk(path)
        if isinstance(found, datasets.Dataset):
            yield from ((f"{path}, {where}", row) for where, row in rows_in_memory(found))
            return
        _check_split(path, wanted, found)
        yield from ((f"{path}, {where}", row) for where, row in rows_in_memory(found[wanted]))
        return
    files: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*")):
        named = _SPLIT.search(file.relative_to(path).as_posix())
        if named is not None and file.suffix in SUFFIXES:
            files.setdefault("validation" if named[1].startswith("val") else named[1], []).append(file)
    if not files:
        raise DrLLMError(f"the data {path} must be a file, but it is a folder; name a file in it.")
    _check_split(path, wanted, files)
    for file in files[wanted]:
        yield from file_rows(file)


def _check_split(path: Path, wanted: str, splits: Iterable[str]) -> None:
    if wanted not in splits:
        raise DrLLMError(f"the data {path} must have a split {wanted!r}, but it has {', '.join(splits)}; name one.")


def _hub_rows(name: str, config: str | None, split: str) -> Iterator[Row]:
    # Imported here: `datasets` is slow to load and local files do without it.
    import datasets

    # Datasets raises many kinds: no network, no such name, no such split.
    with refusing(
        f"the data {name!r} must be a file or a dataset on the Hub, but loading it failed",
        "correct the name or give a local file",
    ):
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(name, config, split=split)
    yield from ((f"{name}, {where}", row) for where, row in rows_in_memory(rows))


def _class_names(features: Any) -> dict[str, list[str]]:
    """The names behind the numbers of a column of classes: answers of MMLU are A to D, stored as 0 to 3."""
    found = {name: getattr(feature, "names", None) for name, feature in dict(features or {}).items()}
    return {name: list(names) for name, names in found.items() if names}


def _named(row: dict[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    for field, classes in names.items():
        value = row.get(field)
        if isinstance(value, int) and 0 <= value < len(classes):
            row[field] = classes[value]
    return row


def _parquet_rows(file: Any, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        refusing(
            f"the data file {path} must be Parquet, but reading it failed", "correct or replace it", pa.ArrowException
        ),
        pq.ParquetFile(file) as parquet,
    ):
        yield from _arrow_rows(parquet.iter_batches(1024), parquet.schema_arrow, path)


def _arrow_rows(batches: Iterable[Any], schema: Any, path: Path) -> Iterator[Row]:
    names: dict[str, list[str]] = {}
    if b"ClassLabel" in (schema.metadata or {}).get(b"huggingface", b""):
        import datasets

        names = _class_names(datasets.Features.from_arrow_schema(schema))
    number = itertools.count(1)
    for batch in batches:
        yield from ((f"{path}, row {next(number)}", _named(plain(row), names)) for row in batch.to_pylist())


def _text_rows(file: Any, head: bytes, path: Path) -> Iterator[Row]:
    lines = _lines(file, json.detect_encoding(head), path)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    lines = itertools.chain([first], lines)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if ".csv" in suffixes or ".tsv" in suffixes or (not _is_json(first[1], suffixes) and _delimiter(first[1])):
        yield from _table_rows(lines, "\t" if ".tsv" in suffixes else _delimiter(first[1]) or ",", path)
    elif _is_json(first[1], suffixes):
        yield from _json_rows(lines, path)
    elif suffixes[-1:] == [".txt"]:
        yield from ((f"{path}, line {number}", {"prompt": line.strip()}) for number, line in lines if line.strip())
    else:
        raise DrLLMError(
            f"the data file {path} must be JSON lines, JSON, CSV, TSV, Parquet or Arrow, but line {first[0]} begins "
            f"none of them; write one JSON object a line."
        )


def decoded(content: bytes, name: str) -> str:
    """The text of a file or stream called `name`: UTF-8, or UTF-16 or UTF-32 as its first bytes say.

    Raises:
        DrLLMError: it is neither; names the line.
    """
    encoding = json.detect_encoding(content)
    return "".join(line for _, line in _lines(io.BytesIO(content), encoding, name))


def _lines(file: Any, encoding: str, name: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, decoded as strictly as can be."""
    if not encoding.startswith("utf-8"):  # whose line ends are not found in the bytes
        try:
            yield from enumerate(io.StringIO(file.read().decode(encoding), newline="\n"), 1)
        except UnicodeDecodeError as error:
            raise DrLLMError(
                f"{name} must be text in {encoding.upper()}, as it begins, but byte {error.start + 1} is not; save it "
                f"as UTF-8."
            ) from error
        return
    for number, line in enumerate(file, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DrLLMError(
                f"{name}, line {number} must be UTF-8 (or UTF-16), but byte {error.start + 1} of it, "
                f"0x{line[error.start]:02x}, is not; if it is in an older encoding, convert it: iconv -f cp1252 -t "
                f"utf-8 OLD > NEW."
            ) from error


def _is_json(line: str, suffixes: list[str]) -> bool:
    begins = line.strip()
    if ".txt" in suffixes and len(begins) > 2:  # prompts may begin with a bracket, "[INST]" for example
        return re.match(r'[{\[]+\s*["\[{]', begins) is not None
    return begins[0] in "{[" or any(suffix in suffixes for suffix in (".json", ".jsonl", ".ndjson"))


def _delimiter(header: str) -> str | None:
    """What stands between the columns of a header that names the question; None for another line."""
    for delimiter in (",", "\t", ";", "|"):
        if {cell.strip(' "\r\n').lower() for cell in header.split(delimiter)}.intersection(QUESTION_FIELDS):
            return delimiter
    return None


def _table_rows(lines: Iterator[tuple[int, str]], delimiter: str, path: Path) -> Iterator[Row]:
    last = 0

    def texts() -> Iterator[str]:
        nonlocal last
        for last, line in lines:  # noqa: B007
            yield line

    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(texts(), delimiter=delimiter)
    try:
        header = [cell.strip() for cell in next(reader)]
        while True:
            # A cell may hold line ends; a row stands where it begins.
            number = last + 1
            cells = next(reader, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header):
                where = f"{path}, line {number}"
                yield (
                    where,
                    DrLLMError(
                        f"{where} must have a cell for each of the {len(header)} columns of line 1, but it has "
                        f"{len(cells)}; put cells that hold {delimiter!r} in quotes."
                    ),
                )
                continue
            # A column of whole numbers with a gap in it is written by pandas with ".0" behind each.
            values = [cell[:-2] if re.fullmatch(r"[+-]?\d+\.0", cell) else cell or None for cell in cells]
            yield f"{path}, line {number}", dict(zip(header, values, strict=False))
    except csv.Error as error:
        raise DrLLMError(f"{path}, line {last} must be {delimiter!r}-separated, but it is not ({error}).") from error


def _json_rows(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[Row]:
    """JSON lines one at a time; any other JSON as a whole."""
    first, line = next(lines)
    begins = None
    with suppress(ValueError):
        begins = json.loads(line)
    read = [(first, line)]
    for item in lines:
        read.append(item)
        if item[1].strip():
            break
    if isinstance(begins, dict) and read[-1][0] > first and read[-1][1].strip():
        for number, line in itertools.chain(read, lines):
            if line.strip():
                yield f"{path}, line {number}", _object(line, f"{path}, line {number}")
        return
    yield from _documents("".join(line for _, line in itertools.chain(read, lines)), first, path)


def _object(line: str, where: str) -> dict[str, Any] | DrLLMError:
    try:
        fields = json.loads(line)
    except ValueError:
        return DrLLMError(f"{where} must be one JSON object, but it is not JSON; correct that line.")
    if not isinstance(fields, dict):
        return DrLLMError(f"{where} must be one JSON object, but it is a {type(fields).__name__}; correct that line.")
    found: dict[str, Any] = plain(fields)
    return found


def _documents(text: str, first_line: int, path: Path) -> Iterator[Row]:
    """The rows of JSON documents behind one another: objects, and arrays of objects."""
    decoder, place, depth, line = json.JSONDecoder(), 0, 0, first_line
    while True:
        begin = re.compile(r"[\s,]*").match(text, place)
        assert begin is not None
        line += text.count("\n", place, begin.end())
        place = begin.end()
        if place == len(text):
            return
        if text[place] == "[" and depth == 0:
            depth, place = 1, place + 1
            continue
        if text[place] == "]" and depth == 1:
            depth, place = 0, place + 1
            continue
        try:
            value, end = decoder.raw_decode(text, place)
        except ValueError as error:
            wrong = first_line + text.count("\n", 0, getattr(error, "pos", place))
            raise DrLLMError(
                f"{path}, line {wrong} must be JSON, but it is not JSON ({first_sentence(error)}); correct that line."
            ) from error
        where = f"{path}, line {line}"
        if not isinstance(value, dict):
            raise DrLLMError(f"{where} must be a JSON object, but it is a {type(value).__name__}; correct that line.")
        rows = None if depth else _rows_of_document(plain(value))
        yield from [(where, plain(value))] if rows is None else ((f"{path}, item {n}", row) for n, row in rows)
        line += text.count("\n", place, end)
        place = end


def _rows_of_document(value: dict[str, Any]) -> list[tuple[int, dict[str, Any]]] | None:
    """The rows that one object holds, as pandas and others write them; None when it is a row itself."""
    asked = [value[name] for name in QUESTION_FIELDS if name in value]
    items = list(value.values())
    rows: list[Any] = []
    if asked and isinstance(asked[0], dict) and "stem" not in asked[0]:  # columns of rows by index
        rows = [{name: column.get(key) for name, column in value.items()} for key in asked[0]]
    elif asked and isinstance(asked[0], list) and not is_conversation(asked[0]):  # columns
        rows = [dict(zip(value, cells, strict=False)) for cells in zip(*items, strict=False)]
    elif asked:
        return None
    elif isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        rows = [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    elif items and all(isinstance(item, dict) for item in items):  # rows by index
        rows = items
    else:
        lists = [item for item in items if isinstance(item, list) and item and isinstance(item[0], dict)]
        if len(lists) != 1:
            return None
        rows = [item.get("row", item) for item in lists[0] if isinstance(item, dict)]
    return list(enumerate(rows, 1))


def is_conversation(value: Any) -> bool:
    """Whether it is a list of messages, which have a role each."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)


def parsed(value: Any) -> Any:
    """A list or mapping that became text, as what it was; anything else as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{", "a") and value.strip()[-1:] in ("]", "}", ")"):
        try:
            return nested(value)
        except ValueError:
            return value
    return value
