"""Sets of any size are read for training and for a push in memory that does not grow with the paths in them."""

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drllm_adapter import DrLLMError
from drllm_adapter.decisions import ScoredPath
from drllm_adapter.supervision import Labels, Row, Rows, choose_labels, iterate_rows, read_search_info
from drllm_adapter.supervision import examples as examples_module
from drllm_adapter.supervision import rows as rows_module
from drllm_adapter.supervision.effects import regress_effects
from drllm_adapter.supervision.examples import Prompts, read_examples
from drllm_adapter.supervision.rows import check_rows, encode_shard, label_counts, shard_table, write_tables
from drllm_adapter.training import EffectRegression
from drllm_adapter.workflow.train import question_names

BLOCKS, PATHS = 12, 20


def made_row(number: int) -> Row:
    random = np.random.default_rng(number)
    decisions = random.integers(0, 3, (PATHS, BLOCKS))
    decisions[0] = 1
    paths = tuple(
        ScoredPath(tuple(path), float(random.random()), bool(random.integers(2))) for path in decisions.tolist()
    )
    return Row(
        id=f"q-{number}", task="made", mode="cloze", prompt=f"Question {number}?", templated=False,
        continuations=(" a", " b"), reference=None, answer_index=0, answer="a", level=None, score="choices",
        base_correct=True, decisions=paths[1].decisions, paths=paths, simulations=PATHS, seed=0, base_model="base",
        base_revision=None, search='{"rule": "weighted", "price": 0.4, "num_blocks": 12}',
    )  # fmt: skip


def made_set(folder: Path, count: int, at_once: int = 1000) -> Path:
    folder.mkdir()
    tables = (
        shard_table(encode_shard(map(made_row, range(start, min(start + at_once, count))), {}))
        for start in range(0, count, at_once)
    )
    write_tables(folder / "train.parquet", tables)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One of 300 rows and one of 1,000, in one row group each."""
    folder = tmp_path_factory.mktemp("sets")
    return made_set(folder / "small", 300), made_set(folder / "large", 1000)


def for_training(folder: Path) -> None:
    labels = Labels("weighted")
    rows, paths, weights = read_examples(folder, labels, folder)
    assert len(question_names(rows)) == len(rows) == len(paths) == len(weights if weights is not None else ())


def for_effects(folder: Path) -> None:
    regress_effects(row.paths for row in iterate_rows(folder))
    EffectRegression.of((row.paths for row in iterate_rows(folder)), range(BLOCKS), 0.4)


def for_baselines(folder: Path) -> None:
    """What an evaluation with baselines reads: twice the rows, and the prompts to be told from the tested ones."""
    rows = Rows(folder)
    assert len({name for name, _ in rows.prompts()}) == sum(1 for _ in rows) == sum(1 for _ in rows)


def info(folder: Path) -> None:
    assert read_search_info(folder)["rule"] == "weighted"


def counts(folder: Path) -> None:
    label_counts(folder / "train.parquet", BLOCKS)


@pytest.mark.parametrize(
    ("read", "bytes_a_row"),
    # A row holds 20 paths of 12 decisions: 5,000 bytes as objects, and a batch more may be alive at the peak.
    [(for_training, 400), (for_effects, 1000), (for_baselines, 200), (check_rows, 20), (info, 20), (counts, 20)],
)
def test_memory_does_not_grow_with_the_paths(
    read: Callable[[Path], None], bytes_a_row: int, sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rows_module, examples_module):
        monkeypatch.setattr(module, "_ROWS_AT_ONCE", 32)
    peaks = []
    gc.disable()  # a collection empties Python's lists of freed tuples, and filling them again would count
    try:
        read(sets[1])  # what is imported, cached, freed
        for folder in sets:
            tracemalloc.start()
            read(folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    finally:
        gc.enable()
    assert (peaks[1] - peaks[0]) / 700 < bytes_a_row


def test_examples_are_the_rows_and_their_labels(sets: tuple[Path, Path]) -> None:
    labels = Labels("weighted", 0.2)
    rows, paths, weights = read_examples(sets[0], labels, "set")
    expected = [(row, *label) for row in iterate_rows(sets[0]) for label in choose_labels(row.paths, "weighted", 0.2)]
    assert len(rows) == len(expected) > 300
    assert [row.id for row in rows] == [row.id for row, *_ in expected]
    assert [tuple(path) for path in paths.tolist()] == [path for _, path, _ in expected]
    assert weights is not None
    assert weights.tolist() == pytest.approx([weight for *_, weight in expected])
    assert list(Prompts(rows)) == [row.prompt for row, *_ in expected]
    for place in (0, 7, len(rows) - 1, -1):
        assert rows[place].id == expected[place][0].id
        assert rows[place].to_prompt() == expected[place][0].to_prompt()
    assert [row.id for row in rows[3:6]] == [row.id for row, *_ in expected[3:6]]
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_rows_without_labels_are_left_out(tmp_path: Path) -> None:
    from dataclasses import replace

    some = [replace(made_row(number), decisions=None if number % 2 else (1,) * BLOCKS) for number in range(5)]
    write_tables(tmp_path / "train.parquet", [shard_table(encode_shard(some, {}))])
    rows, paths, weights = read_examples(tmp_path, None, "set")
    assert [row.id for row in rows] == ["q-0", "q-2", "q-4"]
    assert paths.tolist() == [[1] * BLOCKS] * 3
    assert weights is None
    write_tables(tmp_path / "train.parquet", [shard_table(encode_shard(some[1:2], {}))])
    with pytest.raises(DrLLMError, match="the supervision set set must hold at least one question with a label"):
        read_examples(tmp_path, None, "set")


def test_only_the_columns_that_are_asked_for_are_read(sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str] | None] = []
    original = pq.ParquetFile.iter_batches

    def watched(self: pq.ParquetFile, *arguments: object, columns: list[str] | None = None, **more: object) -> object:
        asked.append(columns)
        return original(self, *arguments, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    monkeypatch.setattr(pq, "read_table", None)
    info(sets[0])
    counts(sets[0])
    assert asked == [["search", "base_model", "base_revision"], ["decisions"]]
    assert pa.total_allocated_bytes() < 50_000_000
