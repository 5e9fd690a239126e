"""Speeds side by side: contestants take turns in one run and medians are reported, since machines are noisy."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from ..adapter.stack import find_stack


@dataclass(frozen=True)
class Comparison:
    """Speed of ours against another way of doing the same.

    Attributes:
        seconds, other_seconds: medians of one repetition.
        ratio: median over the repetitions of other / ours, so more is better.
        spread: the lower and the upper quartile of that ratio.
        goal: least ratio; None where there is none.
    """

    name: str
    setting: str
    seconds: float
    other_seconds: float
    ratio: float
    spread: tuple[float, float]
    goal: float | None

    @property
    def met(self) -> bool:
        return self.goal is None or self.ratio >= self.goal


def compare(
    name: str,
    setting: str,
    ours: Callable[[], None],
    other: Callable[[], None],
    repetitions: int,
    goal: float | None = None,
) -> Comparison:
    """Time both, interleaved, each going first every other time; `goal` is the least ratio other / ours."""
    for warm_up in (ours, other):
        warm_up()
    pairs = []
    for repetition in range(repetitions):
        if repetition % 2:
            after = _seconds(other)
            before = _seconds(ours)
        else:
            before = _seconds(ours)
            after = _seconds(other)
        pairs.append((before, after))
    ratios = [after / before for before, after in pairs]
    quartiles = statistics.quantiles(ratios, n=4)
    return Comparison(
        name=name,
        setting=setting,
        seconds=statistics.median(before for before, _ in pairs),
        other_seconds=statistics.median(after for _, after in pairs),
        ratio=statistics.median(ratios),
        spread=(quartiles[0], quartiles[2]),
        goal=goal,
    )


def environment(model: Any) -> dict[str, Any]:
    """What the figures depend on."""
    import peft
    import transformers

    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "blocks": len(find_stack(model).blocks),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def table(results: Sequence[Comparison]) -> Table:
    """The comparisons for people."""
    shown = Table("comparison", "setting", "ours", "other", "ratio", "quartiles", "goal")
    for item in results:
        goal = "" if item.goal is None else f"{item.goal:.2f} {'met' if item.met else 'missed'}"
        shown.add_row(
            item.name,
            item.setting,
            f"{1000 * item.seconds:.1f} ms",
            f"{1000 * item.other_seconds:.1f} ms",
            f"{item.ratio:.3f}",
            f"{item.spread[0]:.3f} to {item.spread[1]:.3f}",
            goal,
        )
    return shown


def now() -> float:
    """Seconds; on one thread of the CPU its processor time, which neighbours on a shared machine change less than the
    time on the clock.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def _seconds(run: Callable[[], None]) -> float:
    start = now()
    run()
    return now() - start


def report(results: Sequence[Any]) -> dict[str, Any]:
    """The figures as plain values: `results`, a list of comparisons each with whether its goal is met."""
    return {"results": [{**asdict(item), "met": item.met} for item in results]}
