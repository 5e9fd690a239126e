"""Figures reach an experiment tracker through accelerate's classes, and only where one was asked for."""

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from accelerate import tracking as of_accelerate

from drllm_adapter import DrLLMError
from drllm_adapter.jobs import job_progress, tracking


class Recorder(of_accelerate.GeneralTracker):
    """A tracker as accelerate wants them, which keeps what it is given."""

    name = "trackio"
    requires_logging_directory = False
    runs: ClassVar[list["Recorder"]] = []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name, self.logged, self.finished = run_name, [], False
        Recorder.runs.append(self)

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    module = ModuleType("trackio")
    module.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setitem(of_accelerate.LOGGER_TYPE_TO_CLASS, "trackio", Recorder)
    monkeypatch.setattr(Recorder, "runs", [])
    return Recorder.runs


def test_a_run_begins_with_its_first_figures_and_has_them_all(runs: list[Recorder]) -> None:
    tracking.track({"nobody": 1})
    tracking.report_to("trackio", "search", lambda: {"output": Path("paths"), "seed": 3, "log": None})
    assert runs == []
    with job_progress("search", "questions", 4) as progress:
        progress.update(0)
        progress.update(4, facts={"fixed": 0.25})
    tracking.track({"search": {"kept": 3, "rule": "price", "decisions": {"skip": 2}, "fixed": None, "done": True}})
    tracking.finish()
    tracking.track({"nobody": 1})
    (run,) = runs
    assert (run.run_name, run.finished) == ("drllm-search", True)
    assert run.settings == {"output": "paths", "seed": 3, "log": "None"}
    assert [step for step, _ in run.logged] == [4, None] or [step for step, _ in run.logged] == [0, 4, None]
    assert run.logged[-2][1].items() >= {"search/done": 4, "search/total": 4, "search/fixed": 0.25}.items()
    assert run.logged[-1][1] == {"search/kept": 3, "search/decisions/skip": 2}


def test_a_tracker_that_is_not_there_is_refused() -> None:
    with pytest.raises(DrLLMError, match="pip install wandb"):
        tracking.report_to("wandb", "train", dict)
    with pytest.raises(DrLLMError, match="must be one of trackio, wandb, tensorboard"):
        tracking.report_to("paper", "train", dict)


def test_a_command_reports(runs: list[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drllm_adapter.cli import main
    from drllm_adapter.demo import BASE

    command = ["drllm", "search", str(BASE), "--task", "khop", "--limit", "3", "--mode", "cloze", "--simulations", "3",
               "--output", str(tmp_path / "paths"), "--report-to", "trackio"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    (run,) = runs
    assert (run.settings["simulations"], run.finished) == (3, True)
    assert run.logged[-1][1]["search/questions"] == 3
