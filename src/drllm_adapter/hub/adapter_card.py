"""The model card of an adapter, with the evaluations that lie in its folder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard

from ..adapter.config import DrLLMConfig
from ..demo import is_demo
from ..models.download import is_hub_name, load_training_record, split_revision
from ..reporting.percentages import with_interval
from .reports import FIGURE, Evaluation, Interval
from .wording import (
    ADAPTER_TEMPLATE,
    MEASURED_BY,
    TAGS,
    base_link,
    base_name,
    base_option,
    constants,
    dataset_link,
    facts,
    source_names,
)


def adapter_card(
    folder: Path, config: DrLLMConfig, name: str, measured: Sequence[Evaluation], space: str | None
) -> RepoCard:
    """The card of an adapter that is called `name` where it will lie, and shown by the Space `space`."""
    base = config.base_model_name_or_path or ""
    on_hub = is_hub_name(base)
    title = f"Layer routers for {base_name(base)}"
    training = load_training_record(folder)
    supervision = training.get("supervision", {})
    searched = [source["name"] for source in supervision.get("sources", []) if source["hub"]]
    tested = [name for evaluation in measured for name in evaluation.hub_datasets]
    paths = supervision.get("set")
    datasets = dict.fromkeys([*searched, *tested, *([split_revision(paths)[0]] if paths else [])])
    routers = len(config.routed_blocks(config.num_blocks or 0))
    weights = sum(map(math.prod, (config.weight_shapes() or {}).values()))
    return ModelCard.from_template(
        ModelCardData(
            base_model=base if on_hub else None,
            library_name="peft",
            pipeline_tag="text-generation",
            datasets=list(datasets) or None,
            # As PEFT tags its adapters.
            tags=[*TAGS, "transformers", *([f"base_model:adapter:{split_revision(base)[0]}"] if on_hub else [])],
            model_name=title if measured else None,
            eval_results=[result for evaluation in measured for result in _eval_results(evaluation)] or None,
            # The Hub links the adapter from its base with this.
            base_model_relation="adapter" if on_hub else None,
        ),
        template_str=ADAPTER_TEMPLATE,
        title=title,
        name=name,
        base_link=base_link(base, supervision.get("base_revision")),
        num_blocks=config.num_blocks,
        hidden_size=config.hidden_size,
        model_type=config.base_model_type,
        routers=f"{routers} routers of width {config.router_width} read the prompt in {config.num_windows} windows "
        f"({weights:,} weights)",
        code=_code(name, base),
        base_option=base_option(base),
        space=space,
        results=_results(measured),
        training=_training(training),
    )


def _code(name: str, base: str) -> str:
    """The lines that load the adapter, where the package is installed and without its name.

    PEFT finds a base on the Hub by itself. One in a folder must be loaded first, and so must that of an adapter in a
    folder of its repository, where PEFT would look for the base as well.
    """
    repo, folder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if is_hub_name(base) and not folder:
        return (
            f'from peft import AutoPeftModelForCausalLM\n\nmodel = AutoPeftModelForCausalLM.from_pretrained("{name}")'
        )
    imports, where, comment = [], f'"{base}"', ""
    if is_demo(base):
        imports, where = ["from drllm_adapter.demo import BASE"], "BASE"
    elif not is_hub_name(base):
        where, comment = f'"{base_name(base)}"', "  # the folder of your copy"
    arguments = f'"{repo}"' + (f', subfolder="{folder}"' if folder else "")
    return "\n".join(
        [
            *imports,
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({where}){comment}",
            f"model = PeftModel.from_pretrained(base, {arguments})",
        ]
    )


def _eval_results(evaluation: Evaluation) -> list[EvalResult]:
    """The routed model's metrics and its mean passes, for the card's model-index."""
    found = []
    for result in evaluation.results:
        arguments: dict[str, Any] = {"questions": result.count, "base": round(result.base, 4)}
        if result.routed_interval is not None:
            arguments["interval_95"] = [round(bound, 4) for bound in result.routed_interval]
        if result.difference_interval is not None:
            arguments["difference_interval_95"] = [round(bound, 4) for bound in result.difference_interval]
        if evaluation.trained_on is not None:
            arguments["trained_on"] = evaluation.trained_on
        found.append((result, result.metric, f"{result.metric}, routed", result.routed, arguments))
    passes = f"block passes a prompt, base: {evaluation.num_blocks}"
    found.append((evaluation.results[0], "mean_passes", passes, evaluation.mean_passes, {}))
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=result.dataset,
            dataset_name=result.questions,
            dataset_config=result.config,
            dataset_split=result.split,
            metric_type=kind,
            metric_name=f"{name} ({evaluation.settings})",
            metric_value=round(value, 4),
            metric_args=arguments or None,
            source_name="drllm eval",
            source_url=MEASURED_BY,
        )
        for result, kind, name, value, arguments in found
    ]


def _results(measured: Sequence[Evaluation]) -> str:
    if not measured:
        return "Nothing has been measured yet."
    lines = [
        "Base and routed on the same questions, with 95 % intervals, as `drllm eval` measured it.",
        "",
        "| questions | metric | n | base | routed | difference | block passes |",
        "|---|---|---|---|---|---|---|",
    ]
    for evaluation in measured:
        mark = "" if evaluation.trained_on is None else "; known from training, see below"
        for result in evaluation.results:
            lines.append(
                f"| {result.questions} ({evaluation.settings}{mark}) | {result.metric} | {result.count} | "
                f"{result.base:.3f}{_shown(result.base_interval)} | "
                f"{result.routed:.3f}{_shown(result.routed_interval)} | "
                f"{result.routed - result.base:+.3f}{_shown(result.difference_interval, '+')} | "
                f"{evaluation.mean_passes:.2f} of {evaluation.num_blocks} |"
            )
    for evaluation in measured:
        if evaluation.trained_on is not None:
            lines += ["", f"{evaluation.results[0].questions} ({evaluation.settings}): {evaluation.trained_on}"]
    for evaluation in measured:
        if evaluation.figure:
            title = f"Decisions by block: {evaluation.results[0].questions} ({evaluation.settings})"
            lines += ["", f"![{title}]({evaluation.name}/{FIGURE})"]
    return "\n".join(lines)


def _shown(interval: Interval | None, sign: str = "") -> str:
    return "" if interval is None else f" [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _held_out(found: Mapping[str, Any]) -> str:
    """What the routers lose on questions that they were not trained on, and what the depth control was set by."""
    lost = with_interval(found["loss"][0], found["loss"][1:])
    said = (
        f"{found['questions']}; {lost} points of {found['metric']} lost at {found['mean_passes']:.2f} of "
        f"{found['num_blocks']} passes"
    )
    limits = []
    if found["max_loss"] is not None:
        limits.append(f"at most {100 * found['max_loss']:g} points lost")
    if found["mean_passes_allowed"] is not None:
        limits.append(f"at most {found['mean_passes_allowed']:g} mean passes")
    if not limits:
        return said
    return f"{said}; the depth control {found['depth_control']:.4g} was set there for {' and '.join(limits)}"


def _training(training: Mapping[str, Any]) -> str:
    if "supervision" not in training:
        return "Not recorded."
    supervision = training["supervision"]
    versions = {"drllm-adapter": training.get("version"), **training.get("libraries", {})}
    searched = source_names(supervision.get("sources", [])) or ", ".join(supervision["tasks"])
    return facts(
        {
            "questions": f"{supervision['questions']} of {searched}, mode {supervision['mode']}",
            "base model": base_link(supervision["base_model"], supervision["base_revision"]),
            **({"set of paths": dataset_link(supervision["set"])} if supervision.get("set") else {}),
            "search": constants(supervision["search"]),
            "labels": constants(supervision["labels"]),
            "training": constants(training["training"]),
            "kept epoch": training.get("best_epoch"),
            **({"held out": _held_out(held)} if (held := training.get("held_out")) else {}),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
    )
