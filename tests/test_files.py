"""What files look like once they were written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drllm_adapter.files import replacing, write_text_atomic


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        assert os.umask(before) == mask  # it was left as it was


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_written_file_has_an_ordinary_files_mode(tmp_path: Path, mask: int) -> None:
    """Others may read what the umask lets them read, as with any file that a program makes."""
    with umask(mask):
        write_text_atomic(tmp_path / "atomic", "text")
        (tmp_path / "ordinary").write_text("text")
        with replacing(tmp_path / "ordinary") as temporary:
            temporary.write_text("other text")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    assert (tmp_path / "atomic").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "ordinary").read_text() == "other text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atomic", "ordinary"]
