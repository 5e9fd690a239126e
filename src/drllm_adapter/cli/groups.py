"""Options in groups: a parameter of a command that is a dataclass becomes an option for each of its fields."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from .options import (
    Data,
    Device,
    Dtype,
    Json,
    Limit,
    Log,
    LogFormat,
    Overwrite,
    ReportTo,
    Resume,
    Seed,
    SkipFirst,
    Split,
    Task,
    Threads,
    claim,
    console,
    constant,
    log_stream,
    numbers,
)


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer can read it, which knows single values alone: options where it has groups of them."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        options = [parameter]
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            options = list(inspect.signature(groups[name]).parameters.values())
        parameters += [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{option.name: given.pop(option.name) for option in fields(group)})
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@dataclass(frozen=True)
class Asked:
    """The questions of a command; `options.questions` takes them by these names."""

    task: Task = None
    data: Data = None
    split: Split = None
    limit: Limit = None
    skip: SkipFirst = 0


@dataclass(frozen=True)
class Place:
    """Where a model runs, and in which precision."""

    dtype: Dtype = "auto"
    device: Device = None
    threads: Threads = None

    @property
    def model(self) -> dict[str, Any]:
        """What loads a model takes of these."""
        return {"dtype": self.dtype, "device": self.device}


@dataclass(frozen=True)
class Job(Place):
    """What every job from folder to folder can be told."""

    seed: Seed = 0
    resume: Resume = False
    overwrite: Overwrite = False
    json_file: Json = None
    log: Log = LogFormat.bar
    report_to: ReportTo = None

    @property
    def running(self) -> dict[str, Any]:
        """What a job of `workflow` takes of these: where its model runs, and how progress is told."""
        return {**self.model, "resume": self.resume, "console": console, "log": log_stream(self.log)}

    def claim(self, output: Path, kind: str, begun_as: str, finished_as: str) -> Callable[[], None]:
        """See `options.claim`."""
        return claim(output, kind, begun_as, finished_as, resume=self.resume, overwrite=self.overwrite)


@dataclass(frozen=True)
class NewRouters:
    """What routers are made of that do not exist yet."""

    num_windows: Annotated[int, constant(min=1, help="Windows the prompt is pooled into, of new routers.")] = 8
    router_width: Annotated[int, constant(min=1, help="Width of the hidden layer of new routers.")] = 128
    layers: Annotated[
        str | None,
        constant(help="Blocks that get a router, such as 4,5,6; all of them by default."),
    ] = None

    def settings(self) -> dict[str, Any]:
        """The arguments of a `DrLLMConfig`."""
        blocks = numbers(self.layers, "--layers", "block indices", "4,5,6")
        return {"num_windows": self.num_windows, "router_width": self.router_width, "layers_to_transform": blocks}
