"""How far a job is, against a clock that stands still until it is told to go on."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from drllm_adapter.jobs import job_progress
from drllm_adapter.jobs import progress as progress_module


class Clock:
    """In place of the `time` module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_module, "time", made)
    return made


def test_the_time_left_goes_by_weight_and_this_run_alone(clock: Clock) -> None:
    """Two of ten questions were answered before, a fifth of the work; long ones come first."""
    log = io.StringIO()
    with job_progress("search", "questions", 10, weight=100.0, log=log) as progress:
        progress.update(2, 20.0)
        assert (progress.per_hour, progress.seconds_left) == (None, None)
        clock.now += 30
        progress.update(4, 60.0, {"fixed": 0.25})
        # 2 questions in 30 s; they weighed 40, so the 40 that are left take as long again.
        assert progress.per_hour == pytest.approx(240)
        assert progress.seconds_left == pytest.approx(30)
        clock.now += 10
        progress.update(5, 70.0)
        assert progress.seconds_left == pytest.approx(40 * 30 / 50)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["start", "progress", "progress", "progress", "end"]
    assert [line["seconds_left"] for line in lines[1:]] == [None, 30.0, 24.0, 24.0]
    assert [line.get("fixed") for line in lines[1:4]] == [None, 0.25, 0.25]
    assert {line["job"] for line in lines} == {"search"}


def test_units_without_a_weight_weigh_alike(clock: Clock) -> None:
    with job_progress("features", "prompts", 8) as progress:
        progress.update(0)
        clock.now += 12
        progress.update(6)
        assert progress.seconds_left == pytest.approx(4)
        assert progress.per_hour == pytest.approx(1800)


def test_the_log_is_told_once_a_second_and_at_the_end(clock: Clock) -> None:
    log = io.StringIO()
    with job_progress("features", "prompts", 5, log=log) as progress:
        for done in range(6):
            progress.update(done)
            clock.now += 0.4
    told = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["done"] for line in told if line["event"] == "progress"] == [0, 3, 5]


def test_without_a_terminal_a_line_a_minute_is_told(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with job_progress("search", "questions", 1000, console=Console(file=io.StringIO())) as progress:
        for done in range(0, 1000, 5):
            progress.update(done, facts={"fixed": 0.25})
            clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "drllm: search, 300/1,000 questions · 18,000 an hour · fixed 25.0 % · 0:02:20 left",
        "drllm: search, 600/1,000 questions · 18,000 an hour · fixed 25.0 % · 0:01:20 left",
        "drllm: search, 900/1,000 questions · 18,000 an hour · fixed 25.0 % · 0:00:20 left",
    ]


@pytest.mark.parametrize(
    "options", [{}, {"console": Console(quiet=True)}, {"console": Console(), "log": io.StringIO()}]
)
def test_nobody_is_told_who_did_not_ask(
    clock: Clock, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    with job_progress("search", "questions", 1000, **options) as progress:
        for done in range(0, 1000, 100):
            progress.update(done)
            clock.now += 100
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:install")
@pytest.mark.parametrize("kind", ["force_terminal", "force_jupyter"])
def test_terminals_and_notebooks_have_a_bar(clock: Clock, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "find_spec", lambda name: name)
    with job_progress("search", "questions", 10, console=Console(file=io.StringIO(), **{kind: True})) as progress:
        assert not progress.bar.disable
        progress.update(4)
    assert progress.bar.tasks[0].completed == 4


def test_a_job_that_fails_says_how_far_it_was(clock: Clock) -> None:
    log = io.StringIO()

    def fail() -> None:
        with job_progress("features", "prompts", 5, log=log) as progress:
            progress.update(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    last = json.loads(log.getvalue().splitlines()[-1])
    assert (last["event"], last["reason"], last["done"]) == ("stopped", "KeyError", 2)
