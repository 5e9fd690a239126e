"""Pieces of a job, one process at a time: what is done, what is told, what it costs."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drllm_adapter.errors import Interrupted
from drllm_adapter.jobs import Locks, Shards, work_through


def content(piece: int) -> bytes:
    return f"piece {piece}".encode()


def work(folder: Path, count: int, **stop: Any) -> list[int]:
    """How many pieces were finished each time that this was told."""
    told: list[int] = []

    def seen(shards: Mapping[int, Path]) -> None:
        told.append(len(shards))
        assert all(path.read_bytes() == content(piece) for piece, path in shards.items())

    locks: Any = Locks(folder / ".lock")
    flag: Any = SimpleNamespace(asked=False, **stop)
    try:
        work_through(range(count), content, Shards(folder / "shards", ".txt"), locks, flag, seen)
    finally:
        locks.close()
    return told


def test_a_piece_costs_one_listing_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or listdir(path))
    for count in (5, 20):
        listed.clear()
        (tmp_path / str(count)).mkdir()
        assert work(tmp_path / str(count), count) == list(range(1, count + 1))
        assert len(listed) == count


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    work(tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert work(tmp_path, 5)[-1] == 5
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert work(tmp_path, 5) == [5]


def test_a_claim_is_let_go_when_the_run_is_stopped(tmp_path: Path) -> None:
    locks: Any = Locks(tmp_path / ".lock")
    stopped: Any = SimpleNamespace(asked=True)
    with pytest.raises(Interrupted, match="stopped with 4 of 4 pieces left"):
        work_through(range(4), content, Shards(tmp_path / "shards", ".txt"), locks, stopped, lambda _: None)
    assert not (tmp_path / "shards").exists()
    locks.close()
    assert work(tmp_path, 4) == [1, 2, 3, 4]
