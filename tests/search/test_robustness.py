"""Searches in processes of their own that are killed, share a folder, fill the disk or find it read-only."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_runner import data, search

SEARCH = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from drllm_adapter import DrLLMError
from test_runner import ToyScorer, data, search
folder = Path({folder!r})
"""
RUN = "search(folder, ToyScorer(delay={delay}), resume=True)\n"


def python(code: str, folder: Path, **values: object) -> list[str]:
    code = SEARCH.format(here=str(Path(__file__).parent), folder=str(folder)) + code.format(**values)
    return [sys.executable, "-c", code]


def killed(folder: Path, seconds: float) -> bool:
    """Search in a process that is killed after so many seconds; whether it was still running then."""
    process = subprocess.Popen(python(RUN, folder, delay=0.01))
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    assert process.returncode == 0
    return False


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_loses_nothing(tmp_path: Path, rounds: int) -> None:
    search(tmp_path / "whole")
    start = time.perf_counter()
    assert not killed(tmp_path / "timed", 600)
    whole = time.perf_counter() - start
    moments, number = random.Random(rounds), 0
    for round_ in range(rounds):
        folder = tmp_path / f"set {number}"
        # From before the folder is made to after the file is written.
        killed(folder, moments.uniform(0.3, 1.1) * whole)
        # After two kills on one folder it must come to an end.
        if round_ % 2:
            search(folder, resume=True)
            assert data(folder) == data(tmp_path / "whole")
            number += 1
    search(tmp_path / f"set {number}", resume=True)
    assert data(tmp_path / f"set {number}") == data(tmp_path / "whole")


def test_a_second_run_is_refused_by_name_until_the_first_has_died(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    first = subprocess.Popen(python(RUN, folder, delay=1.0))
    while not (folder / "search.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run(python(RUN, folder, delay=0), capture_output=True, text=True)
    assert f"only one run at a time can write to {folder}, but process {first.pid} on" in second.stderr
    first.send_signal(signal.SIGSTOP)  # alive, though it does nothing
    assert subprocess.run(python(RUN, folder, delay=0), capture_output=True).returncode == 1
    first.kill()
    first.wait()
    subprocess.run(python(RUN, folder, delay=0), check=True)
    search(tmp_path / "whole")
    assert data(folder) == data(tmp_path / "whole")


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    )


DISK = """
import os
def refused():
    try:
        search(folder / "set", ToyScorer(), resume=True)
    except DrLLMError as error:
        return str(error)
    raise SystemExit("the search was not refused")
"""
FULL = """
space = os.statvfs(folder)
(folder / "ballast").write_bytes(bytes(space.f_bavail * space.f_bsize - 7 * 4096))
said = refused()
assert "No space left on device" in said, said
assert not list(folder.rglob("*.tmp")) and list((folder / "set" / "shards").iterdir())
(folder / "ballast").unlink()
search(folder / "set", ToyScorer(), resume=True)
print(data(folder / "set").hex())
"""
READ_ONLY = """
import subprocess
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
said = refused()
assert "Read-only file system" in said, said
print("refused")
"""


@pytest.mark.skipif(not can_mount(), reason="needs user namespaces to mount a small disk")
def test_a_disk_that_is_really_full_or_read_only(tmp_path: Path) -> None:
    search(tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    for code, expected in ((FULL, data(tmp_path / "whole").hex()), (READ_ONLY, "refused")):
        command = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=256k none "$0" && exec "$@"', str(disk)]
        done = subprocess.run([*command, *python(DISK + code, disk)], capture_output=True, text=True, env=os.environ)
        assert done.stdout.strip() == expected, done.stderr
