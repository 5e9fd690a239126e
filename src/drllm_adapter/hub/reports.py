"""The reports of `drllm eval` as a card shows them: nothing gets onto a card that is not in one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter.config import DEPTH_CONTROL_AS_TRAINED, DrLLMConfig
from ..errors import DrLLMError
from ..files import EVALUATION, REPORT, folder_kind
from .wording import source_names

FIGURE = "layers.png"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Result:
    """One metric of the base and of the routed model on the same questions.

    Attributes:
        questions: what they are called; `dataset`, `config`, `split` where one dataset is all of them.
        metric: such as "accuracy".
        count: questions.
        base, routed: values of the metric.
        base_interval, routed_interval, difference_interval: of 95 %; None where the report has none.
    """

    questions: str
    dataset: str
    config: str | None
    split: str | None
    metric: str
    count: int
    base: float
    routed: float
    base_interval: Interval | None
    routed_interval: Interval | None
    difference_interval: Interval | None


@dataclass(frozen=True)
class Evaluation:
    """A report: its results, and what holds for all of them.

    Attributes:
        name: of its folder inside the adapter's.
        results: at least one.
        mean_passes, num_blocks: block passes a prompt, routed and base.
        settings: what the figures depend on beside questions and weights, in words.
        hub_datasets: names of the datasets on the Hub that the questions come from.
        trained_on: says that questions of the training are among those evaluated, see `training.trained_on`; or None.
        figure: whether decisions by block were drawn.
    """

    name: str
    results: tuple[Result, ...]
    mean_passes: float
    num_blocks: int
    settings: str
    hub_datasets: tuple[str, ...]
    trained_on: str | None
    figure: bool


def evaluations(adapter: Path, config: DrLLMConfig) -> list[Evaluation]:
    """Those in the folders inside an adapter's, by name.

    Raises:
        DrLLMError: see `read_evaluation`.
    """
    found = sorted(path.parent for path in adapter.glob(f"*/{REPORT}") if folder_kind(path.parent) == EVALUATION)
    return [read_evaluation(folder, config) for folder in found]


def read_evaluation(folder: Path, config: DrLLMConfig) -> Evaluation:
    """What `drllm eval` measured with the adapter of this configuration.

    Raises:
        DrLLMError: there is no report, it is damaged, or it was measured with other weights.
    """
    path = folder / REPORT
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        measured = report["adapter_checksum"]
        sources = report.get("sources", [])
        evaluation = Evaluation(
            name=folder.resolve().name,
            results=_of_harness(report) if "harness" in report else _of_questions(report),
            mean_passes=float(report["mean_passes"]),
            num_blocks=int(report["num_blocks"]),
            settings=_settings(report),
            hub_datasets=tuple(source["name"] for source in sources if source["hub"]),
            trained_on=None if report.get("trained_on") is None else str(report["trained_on"]),
            figure=(folder / FIGURE).is_file(),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DrLLMError(
            f"{path} must be a report of drllm eval, but it is missing, damaged or of another version; evaluate the "
            f"adapter again."
        ) from error
    if measured != config.checksum:
        raise DrLLMError(
            f"{path} must have been measured with this adapter's weights (checksum {str(config.checksum)[:12]}), but "
            f"it was with others ({str(measured)[:12]}); evaluate the adapter again, or remove that report."
        )
    return evaluation


def _of_questions(report: Mapping[str, Any]) -> tuple[Result, ...]:
    sources: list[dict[str, Any]] = report["sources"]
    only: dict[str, Any] = sources[0] if len(sources) == 1 else {"name": "mixture", "config": None, "split": None}
    return (
        Result(
            questions=source_names(sources),
            dataset=only["name"],
            config=only["config"],
            split=only["split"],
            metric=str(report.get("metric", "accuracy")),
            count=int(report["routed"]["of"]),
            base=float(report["base"]["value"]),
            routed=float(report["routed"]["value"]),
            base_interval=_interval(report["base"]["interval"]),
            routed_interval=_interval(report["routed"]["interval"]),
            difference_interval=_interval(report["difference_interval"]),
        ),
    )


def _of_harness(report: Mapping[str, Any]) -> tuple[Result, ...]:
    return tuple(
        Result(
            questions=f"{item['task']} (lm-evaluation-harness {report['harness']})",
            dataset=item["task"],
            config=None,
            split=None,
            metric=item["metric"],
            count=int(item["count"]),
            base=float(item["base"]),
            routed=float(item["routed"]),
            base_interval=None,
            routed_interval=None,
            difference_interval=_interval(item["interval"]),
        )
        for item in report["results"]
    )


def _interval(bounds: Any) -> Interval | None:
    return None if bounds is None else (float(bounds[0]), float(bounds[1]))


def _settings(report: Mapping[str, Any]) -> str:
    parts = [str(report[name]) for name in ("mode", "dtype") if report.get(name)]
    if report["depth_control"] != DEPTH_CONTROL_AS_TRAINED:
        parts.append(f"depth control {report['depth_control']}")
    if report["layer_budget"] is not None:
        parts.append(f"layer budget {report['layer_budget']}")
    return ", ".join(parts)
