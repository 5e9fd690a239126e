"""The model card of an adapter, with the evaluations that lie in its folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard

from ..adapter.config import DrLLMConfig
from ..errors import DrLLMError
from ..files import folder_kind
from .wording import TAGS, base_link, base_name, constants, facts, is_demo, is_hub_name, share, source_names, template

EVALUATION = "evaluation"
REPORT, FIGURE = "report.json", "layers.png"
# By this the results that were taken from reports are told from those that somebody wrote into the card.
MEASURED_BY = "https://pypi.org/project/drllm-adapter/"


def adapter_card(folder: Path, config: DrLLMConfig, name: str) -> RepoCard:
    """The card of an adapter that is called `name` where it will lie.

    Raises:
        DrLLMError: a report in the folder was measured with other weights, or is damaged.
    """
    base = config.base_model_name_or_path or ""
    on_hub = is_hub_name(base)
    title = f"Layer routers for {base_name(base)}"
    reports = _reports(folder, config)
    supervision = (config.training or {}).get("supervision", {})
    sources: list[dict[str, Any]] = supervision.get("sources", [])
    # Sources of the questions and of the evaluations, without repetitions.
    datasets = dict.fromkeys(
        source["name"]
        for source in [*sources, *(item for _, report in reports for item in report["sources"])]
        if source["hub"]
    )
    routed = config.routed_blocks(config.num_blocks or 0)
    weights = len(routed) * ((config.hidden_size or 0) * config.router_width + 4 * config.router_width + 3)
    return ModelCard.from_template(
        ModelCardData(
            base_model=base if on_hub else None,
            library_name="peft",
            pipeline_tag="text-generation",
            datasets=list(datasets) or None,
            tags=list(TAGS),
            model_name=title,
            eval_results=[result for _, report in reports for result in _eval_results(report)] or None,
            # The Hub links the adapter from its base with this.
            base_model_relation="adapter" if on_hub else None,
        ),
        template_str=template("adapter.md"),
        title=title,
        name=name,
        base_link=base_link(base, supervision.get("base_revision")),
        num_blocks=config.num_blocks,
        hidden_size=config.hidden_size,
        model_type=config.base_model_type,
        routers=f"{len(routed)} routers of width {config.router_width} read the prompt in {config.num_windows} windows "
        f"({weights:,} weights)",
        code=_code(name, base),
        results=_results(reports),
        training=_training(config.training),
    )


def _code(name: str, base: str) -> str:
    """The lines that load the adapter: PEFT finds a base on the Hub by itself, one in a folder must be loaded first."""
    if is_hub_name(base):
        return (
            "import drllm_adapter\n"
            "from peft import AutoPeftModelForCausalLM\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")'
        )
    demo = is_demo(base)
    lines = ["from drllm_adapter.demo import BASE"] if demo else ["import drllm_adapter"]
    where = "BASE" if demo else f'"{base_name(base)}"'
    return "\n".join(
        [
            *lines,
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({where}), "{name}")',
        ]
    )


def _reports(folder: Path, config: DrLLMConfig) -> list[tuple[str, dict[str, Any]]]:
    """The evaluations inside the adapter's folder, by name."""
    found = sorted(path.parent for path in folder.glob(f"*/{REPORT}") if folder_kind(path.parent) == EVALUATION)
    return [(path.name, read_report(path, config)) for path in found]


def read_report(folder: Path, config: DrLLMConfig) -> dict[str, Any]:
    """What `drllm eval` measured with the adapter of this configuration.

    Raises:
        DrLLMError: there is no report, it is damaged, or it was measured with other weights.
    """
    path = folder / REPORT
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        numbers = [report["mean_passes"], report["num_blocks"], report["difference"], *report["difference_interval"]]
        for part in (report["base"], report["routed"]):
            numbers += [part["value"], part["of"], *part["interval"]]
        complete = all(isinstance(number, (int, float)) for number in numbers)
        complete &= all({"name", "config", "split", "hub"} <= source.keys() for source in report["sources"])
        complete &= isinstance(report["mode"], str)
        if not complete:
            raise ValueError
        measured = report["adapter_checksum"]
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
    return report


def _eval_results(report: Mapping[str, Any]) -> list[EvalResult]:
    """The accuracy and the mean passes of a report, for the card's model-index."""
    sources: list[dict[str, Any]] = report["sources"]
    only = sources[0] if len(sources) == 1 else {}
    settings = _settings(report)
    low, high = report["routed"]["interval"]
    accuracy = {"questions": report["routed"]["of"], "interval_95": [round(low, 4), round(high, 4)]}
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=only.get("name") or "mixture",
            dataset_name=source_names(sources),
            dataset_config=only.get("config"),
            dataset_split=only.get("split"),
            metric_type=kind,
            metric_name=f"{called} ({settings})",
            metric_value=round(value, 4),
            metric_args=arguments,
            source_name="drllm eval",
            source_url=MEASURED_BY,
        )
        for kind, called, value, arguments in (
            ("accuracy", "Accuracy, routed", report["routed"]["value"], accuracy),
            ("mean_passes", f"Block passes a prompt, base: {report['num_blocks']}", report["mean_passes"], None),
        )
    ]


def _results(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    if not reports:
        return "Nothing has been measured yet."
    lines = [
        "Accuracy in percent with 95 % intervals, base and routed on the same questions, as `drllm eval` measured it.",
        "",
        "| questions | n | base | routed | difference | mean passes |",
        "|---|---|---|---|---|---|",
    ]
    for _, report in reports:
        low, high = report["difference_interval"]
        lines.append(
            f"| {source_names(report['sources'])} ({_settings(report)}) | {report['base']['of']} | "
            f"{share(report['base'])} | {share(report['routed'])} | {100 * report['difference']:+.1f} "
            f"[{100 * low:+.1f}, {100 * high:+.1f}] | {report['mean_passes']:.2f} of {report['num_blocks']} |"
        )
    for name, report in reports:
        lines += ["", f"![Decisions by block, {source_names(report['sources'])}]({name}/{FIGURE})"]
    return "\n".join(lines)


def _settings(report: Mapping[str, Any]) -> str:
    """What a figure depends on beside the questions."""
    parts = [str(report["mode"]), str(report.get("dtype", ""))]
    if report.get("depth_control") not in (None, -0.5):
        parts.append(f"depth control {report['depth_control']}")
    if report.get("layer_budget") is not None:
        parts.append(f"layer budget {report['layer_budget']}")
    return ", ".join(part for part in parts if part)


def _training(training: Mapping[str, Any] | None) -> str:
    if not training or "supervision" not in training:
        return "Not recorded."
    supervision = training["supervision"]
    versions = {"drllm-adapter": training.get("version"), **training.get("libraries", {})}
    searched = source_names(supervision.get("sources", [])) or ", ".join(supervision["tasks"])
    return facts(
        {
            "questions": f"{supervision['questions']} of {searched}, mode {supervision['mode']}",
            "base model": base_link(supervision["base_model"], supervision["base_revision"]),
            "search": constants(supervision["search"]),
            "labels": constants(supervision["labels"]),
            "training": constants(training["training"]),
            "kept epoch": training.get("best_epoch"),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
    )
