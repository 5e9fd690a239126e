"""The model card of an adapter, from what its own files say."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..adapter.config import DrLLMConfig
from ..files import write_text_atomic

TAGS = ["dr-llm", "layer-routing", "dynamic-depth", "peft"]


def write_adapter_card(folder: str | os.PathLike[str], config: DrLLMConfig) -> None:
    """Write `README.md` into an adapter's folder, with only what was measured.

    Args:
        folder: of the adapter; a `report.json` in it, as `drllm eval` writes, becomes the results.
        config: of the adapter, with its `training` facts.
    """
    folder = Path(folder)
    base = str(config.base_model_name_or_path)
    # A local folder is no name on the Hub, where the field becomes a link.
    data = ModelCardData(
        base_model=None if Path(base).is_dir() else base,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=TAGS,
    )
    card = ModelCard.from_template(
        data,
        template_str=_template("adapter.md"),
        title=f"Layer routers for {Path(base).name}",
        adapter=folder.name,
        base_model=Path(base).name if Path(base).is_dir() else base,
        num_blocks=config.num_blocks,
        hidden_size=config.hidden_size,
        model_type=config.base_model_type,
        training=_training(config.training),
        results=_results(folder / "report.json"),
    )
    write_text_atomic(folder / "README.md", str(card))


def _template(name: str) -> str:
    # Inside the wheel the templates lie in the package, in a checkout beside its sources.
    here = Path(__file__).parents[1]
    path = here / "hub_cards" / name
    return (path if path.exists() else here.parents[1] / "hub_cards" / name).read_text(encoding="utf-8")


def _training(training: Mapping[str, Any] | None) -> str:
    if not training:
        return "Not recorded."
    supervision, constants = training["supervision"], training["training"]
    search, labels = supervision["search"], supervision["labels"]
    rule = labels["rule"] + (f" (price {labels['price']})" if labels["rule"] == "price" else "")
    return (
        f"Searched on {supervision['questions']} questions ({', '.join(supervision['tasks'])}, mode "
        f"{supervision['mode']}) with {search['simulations']} simulations each (exploration {search['exploration']}, "
        f"length penalty {search['length_penalty']}, seed {search['seed']}), labels by the rule {rule}. Trained for at "
        f"most {constants['epochs']} epochs with focal loss (gamma {constants['gamma']}), learning rate "
        f"{constants['learning_rate']}, seed {constants['seed']}, by drllm-adapter {training['version']}."
    )


def _results(report: Path) -> str:
    if not report.exists():
        return "Nothing has been measured yet."
    measured = json.loads(report.read_text(encoding="utf-8"))

    def shown(share: Mapping[str, Any]) -> str:
        low, high = share["interval"]
        return f"{100 * share['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    return (
        f"| questions | base | routed | mean passes |\n|---|---|---|---|\n| {measured['base']['of']} "
        f"({', '.join(measured['tasks'])}, {measured['mode']}) | {shown(measured['base'])} | "
        f"{shown(measured['routed'])} | {measured['mean_passes']:.2f} of {measured['num_blocks']} |"
    )
