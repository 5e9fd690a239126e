"""What files look like once they were written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drllm_adapter import DrLLMError
from drllm_adapter.files import check_claim, claim_folder, replacing, write_text_atomic


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


@pytest.mark.parametrize(("kind", "named"), [("demo", "a demo"), ("adapter", "an adapter")])
def test_a_taken_folder_is_to_be_gone_on_with_only_where_that_is_possible(
    kind: str, named: str, tmp_path: Path
) -> None:
    claim_folder(tmp_path / "taken", kind)
    with pytest.raises(DrLLMError, match=f"already holds {named}; choose another folder"):
        claim_folder(tmp_path / "taken", kind)
    with pytest.raises(DrLLMError, match=f"holds {named} that is not finished; go on with --resume or choose"):
        check_claim(tmp_path / "taken", kind, unfinished=True)
