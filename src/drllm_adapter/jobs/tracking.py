"""Figures of a run for an experiment tracker (trackio, wandb, tensorboard), through accelerate's trackers.

One run a process, as with logging: what has figures gives them to `track`, which forgets them where nobody asked.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import DrLLMError

TRACKERS = ("trackio", "wandb", "tensorboard")


class _Run:
    """A run that begins with its first figures, so that a command that is refused leaves none."""

    def __init__(self, tracker: str, job: str, settings: Callable[[], Mapping[str, Any]]) -> None:
        self.tracker, self.job, self.settings = tracker, job, settings
        self.started: Any = None

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        if self.started is None:
            self.started = self._start()
        self.started.log(dict(values), step=step)

    def _start(self) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind: Any = LOGGER_TYPE_TO_CLASS[self.tracker]
        settings = self.settings()
        place = [Path(settings.get("output") or ".") / "runs"] if kind.requires_logging_directory else []
        started = kind(f"drllm-{self.job}", *place)
        started.main_process_only = False  # only the main process asks for one
        started.start()
        plain = {
            name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in settings.items()
        }
        started.store_init_configuration(plain)
        return started


_runs: list[_Run] = []


def report_to(tracker: str, job: str, settings: Callable[[], Mapping[str, Any]]) -> None:
    """Send the figures of this process there from now on.

    Args:
        tracker: one of `TRACKERS`.
        job: "search", "train", ...; names the project.
        settings: gives the options of the command, once they are known.

    Raises:
        DrLLMError: it is none of them, or its package is not installed.
    """
    if tracker not in TRACKERS:
        raise DrLLMError(
            f"--report-to must be one of {', '.join(TRACKERS)}, but {tracker!r} was given; choose one of them."
        )
    if find_spec(tracker) is None:
        raise DrLLMError(
            f"--report-to {tracker} needs the package {tracker}, but it is not installed; run pip install {tracker}."
        )
    _runs[:] = [_Run(tracker, job, settings)]


def track(values: Mapping[str, Any], step: int | None = None) -> None:
    """Give the numbers among the values, those inside others under `outer/inner`, to the tracker if there is one."""
    numbers = dict(_numbers(values, ""))
    if _runs and numbers:
        _runs[0].log(numbers, step)


def finish() -> None:
    """End the run."""
    for run in _runs:
        if run.started is not None:
            run.started.finish()
    _runs.clear()


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
