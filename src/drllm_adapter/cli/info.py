"""`drllm info`."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import REPORT
from .options import Json, console, write_json


def info(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder, or owner/name[@branch] on the Hub.")],
    json_file: Json = None,
) -> None:
    """Say what an adapter fits, how large it is, its constants, and how it was trained."""
    from ..models.download import fetch, load_training_record
    from ..models.loading import load_adapter_config

    config, training = load_adapter_config(adapter), load_training_record(adapter)
    num_blocks, shapes = config.num_blocks, config.weight_shapes()
    routed = [] if num_blocks is None else config.routed_blocks(num_blocks)
    weights = None if shapes is None else sum(map(math.prod, shapes.values()))
    facts = {
        "fits": f"{config.base_model_type}, {num_blocks} blocks of width {config.hidden_size}",
        "base": config.base_model_name_or_path,
        "routers": f"{len(routed)} of {num_blocks} blocks, width {config.router_width}, {config.num_windows} windows",
        "weights": None if weights is None else f"{weights:,} ({4 * weights / 1e6:.1f} MB in float32)",
        "depth control": config.depth_control,
        "layer budget": config.layer_budget,
        "checksum": config.checksum,
    }
    for name, value in facts.items():
        console.print(f"{name:14}{'-' if value is None else value}", highlight=False, soft_wrap=True)
    for name, value in _training_facts(training):
        console.print(f"{name:14}{value}", highlight=False, soft_wrap=True)
    for name, shares in _decisions(fetch(adapter, "model", (f"*/{REPORT}",))):
        console.print(f"{name:14}{_bars(shares)}", highlight=False, soft_wrap=True)
    write_json(json_file, {**facts, "number of weights": weights, "training": training})


def _decisions(adapter: Path) -> list[tuple[str, list[float]]]:
    """How often each block is skipped and repeated, by the adapter's first evaluation; nothing where it has none."""
    for path in sorted(adapter.glob(f"*/{REPORT}")):
        try:
            counts = json.loads(path.read_text(encoding="utf-8"))["decisions"]
            shares = [[decision / sum(block) for decision in block] for block in counts]
            return [(name, [block[place] for block in shares]) for name, place in (("skipped", 0), ("repeated", 2))]
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, IndexError):
            continue  # of lm-evaluation-harness, which counts no blocks, or somebody else's
    return []


def _bars(shares: list[float]) -> str:
    """A character for each block, higher where the share is: tenths where bars cannot be shown."""
    signs = " ▁▂▃▄▅▆▇█" if console.encoding.startswith("utf") else "0123456789"
    drawn = "".join(signs[min(len(signs) - 1, math.ceil(share * (len(signs) - 1)))] for share in shares)
    return f"|{drawn}| blocks 0 to {len(shares) - 1}, at most {100 * max(shares):.0f} % of the questions"


def _training_facts(training: dict[str, Any]) -> list[tuple[str, str]]:
    if not training:
        return [("training", "not recorded")]
    supervision = training.get("supervision", {})
    metrics = training.get("metrics", {}).get("routers", {})
    labels = supervision.get("labels", {})
    search = supervision.get("search", {})
    tasks = ", ".join(supervision.get("tasks", []))
    learnt = f"{supervision.get('questions')} questions ({tasks}, {supervision.get('mode')})"
    facts = [("trained on", learnt)]
    if "rule" in labels and search:
        how = f"{labels['rule']} labels at price {labels.get('price')}, {search.get('simulations')} simulations"
        facts = [("trained on", f"{learnt}, {how}, seed {search.get('seed')}")]
    if "macro_f1" in metrics:  # of routers that imitate labels; refined ones have none
        passes, epoch = metrics.get("mean_passes", math.nan), training.get("best_epoch")
        facts.append(("validation", f"macro F1 {metrics['macro_f1']:.3f}, {passes:.2f} passes, best epoch {epoch}"))
    return [*facts, ("made with", f"drllm-adapter {training.get('version')}")]
