"""How far a job is: a bar for people, a line a minute where there is no terminal, JSON lines for machines."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .tracking import track

_LOGGED_EVERY_S = 1.0
_TOLD_EVERY_S = 60.0


class JobProgress:
    """Counts the units that are done, in this run and before, by every process of the job.

    Speed and time left come from what was done in this run alone, so they are right at once after a resume. Units may
    weigh differently (long and short questions); the time left goes by weight.

    Args:
        job: "search", "features", ...
        unit: what is counted, in the plural.
        total: units in all.
        weight: of all units; None is `total`.
        console: shows a bar when it is a terminal, or a notebook with ipywidgets; for pipes and batch jobs a line a
            minute goes to standard error. None shows nothing, and neither does a quiet one.
        log: JSON lines go here, and then nothing else is shown.
    """

    def __init__(
        self, job: str, unit: str, total: int, weight: float | None, console: Console | None, log: TextIO | None
    ) -> None:
        self.job, self.unit, self.total, self.weight = job, unit, total, float(total if weight is None else weight)
        self.log, self.console = log, console
        self.done, self.weight_done = 0.0, 0.0
        self._started = time.monotonic()
        self._before: tuple[float, float] | None = None
        self._logged = 0.0
        self._facts: Mapping[str, float | None] = {}
        shown = console is not None and not console.quiet and log is None
        has_bar = (
            shown
            and console is not None
            and (console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None))
        )
        self._told = time.monotonic() if shown and not has_bar else float("inf")
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not has_bar,
        )
        self._task = self.bar.add_task(job, total=total, text="")

    def update(
        self, done: float, weight_done: float | None = None, facts: Mapping[str, float | None] | None = None
    ) -> None:
        """Say what is done by now, units of earlier runs included; the first call says what earlier runs did.

        Args:
            facts: shares in [0, 1] worth showing, by name; None is not known yet. Without them the last ones stay.
        """
        self.done, self.weight_done = done, done if weight_done is None else weight_done
        self._facts = self._facts if facts is None else facts
        now = time.monotonic()
        if self._before is None:
            self._before, self._started = (self.done, self.weight_done), now
        if not self.bar.disable:
            self.bar.update(self._task, completed=self.done, text=self._text())
        if now - self._told >= _TOLD_EVERY_S:
            self._told = now
            print(f"drllm: {self.job}, {self._text()}", file=sys.stderr, flush=True)
        if now - self._logged >= _LOGGED_EVERY_S or self.done >= self.total:
            self._logged = now
            self.event("progress", **self._figures(), **self._facts)
            # A sweep has several steps of one kind, each a job of its own.
            track({self.job.partition(",")[0]: {**self._figures(), **self._facts}}, step=int(self.done))

    def _text(self) -> str:
        parts = [f"{int(self.done):,}/{self.total:,} {self.unit}"]
        if (speed := self.per_hour) is not None:
            parts.append(f"{speed:,.0f} an hour")
        parts += [f"{name} {100 * share:.1f} %" for name, share in self._facts.items() if share is not None]
        if (left := self.seconds_left) is not None:
            parts.append(f"{timedelta(seconds=round(left))} left")
        return " · ".join(parts)

    def event(self, name: str, **facts: Any) -> None:
        """Write one line of the log."""
        if self.log is not None:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            print(json.dumps({"time": now, "job": self.job, "event": name, **facts}), file=self.log, flush=True)

    def warn(self, message: str, **facts: Any) -> None:
        """Tell people or machines of something that went wrong and was mended."""
        if self.log is not None:
            self.event("warning", message=message, **facts)
        elif self.console is not None:
            self.console.print(f"drllm: {message}", highlight=False, markup=False, soft_wrap=True)

    @property
    def per_hour(self) -> float | None:
        """Units an hour in this run; None before the first."""
        done = self.done - (self._before or (self.done, 0.0))[0]
        return 3600 * done / self._elapsed if done > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Until all units are done, at the speed of this run; None before it has one."""
        done = self.weight_done - (self._before or (0.0, self.weight_done))[1]
        return self._elapsed * (self.weight - self.weight_done) / done if done > 0 else None

    @property
    def _elapsed(self) -> float:
        return max(1e-6, time.monotonic() - self._started)

    def _figures(self) -> dict[str, Any]:
        left, speed = self.seconds_left, self.per_hour
        return {
            "done": round(self.done, 2),
            "total": self.total,
            "unit": self.unit,
            "per_hour": None if speed is None else round(speed, 1),
            "seconds_left": None if left is None else round(left, 1),
        }


@contextmanager
def job_progress(
    job: str,
    unit: str,
    total: int,
    *,
    weight: float | None = None,
    console: Console | None = None,
    log: TextIO | None = None,
) -> Iterator[JobProgress]:
    """A `JobProgress` that is shown inside the `with` block; it logs how the job ended."""
    progress = JobProgress(job, unit, total, weight, console, log)
    progress.event("start", total=total, unit=unit)
    with progress.bar:
        try:
            yield progress
        except BaseException as error:
            progress.event("stopped", reason=type(error).__name__, **progress._figures())
            raise
    progress.event("end", **progress._figures())
