"""A base or an adapter in, an ordinary checkpoint of one path out."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..adapter.steering import last_decisions
from ..decisions import Decisions, check, execute_all, from_edits, from_path, passes
from ..errors import DrLLMError
from ..evaluation.probe.report import BASE as PROBED_BASE
from ..evaluation.probe.report import STATIC
from ..files import MARKER, REPORT, check_claim, write_json_atomic, writing
from ..hub import write_card
from ..models.download import CHECKPOINT, base_of, load_training_record, names_adapter
from ..models.loading import load_adapter_config, load_routed
from ..models.unroll import MAX_SHARD, UNROLLED, Base, look_at_base, write_unrolled
from .begin import full_name
from .generate import prompt_inputs


@dataclass(frozen=True)
class Chosen:
    """A path and where it comes from.

    Attributes:
        how: in words, for the card.
        measured: what a report says of it: questions, sources, settings, how, rows; None where there is no report.
    """

    decisions: Decisions
    how: str
    measured: dict[str, Any] | None = None


def export_path(
    source: str,
    output: str | os.PathLike[str],
    *,
    path: str | None = None,
    skip: Sequence[int] = (),
    repeat: Sequence[int] = (),
    report: str | os.PathLike[str] | None = None,
    prompts: Sequence[str] = (),
    base: str | None = None,
    chat: bool | None = None,
    max_shard: int | str = MAX_SHARD,
    device: str | None = None,
    overwrite: bool = False,
) -> Chosen:
    """Write the unrolled model of one path into `output`: configuration, tokenizer, weights and a card.

    The path comes from one place: by hand (`path`, or `skip` and `repeat`), from a report, or from routers.

    Args:
        source: base or adapter, a folder or a name on the Hub.
        path: see `decisions.from_path`.
        skip, repeat: blocks; the others execute.
        report: folder of `drllm probe`, or of `drllm eval --baselines`: its best static path that is not the base's.
        prompts: the path that an adapter's routers choose for them; of several the most frequent one.
        base: the base, where the adapter does not say where it is here.
        chat: put prompts into the chat template; None words them as in training.
        max_shard: most bytes of a file of weights, also as "5GB".
        overwrite: replace an earlier checkpoint of this function, once the new one is whole.

    Raises:
        DrLLMError: the path is none, or see `look_at_base`, `write_unrolled`, `load_routed`, `check_claim`.
    """
    ways = [path is not None, bool(skip or repeat), report is not None, bool(prompts)]
    if sum(ways) != 1:
        raise DrLLMError(
            f"a path must come from one place (--path, --skip and --repeat, --report or --prompt), but "
            f"{sum(ways) or 'none'} of them {'was' if sum(ways) < 2 else 'were'} given; choose one."
        )
    check_claim(output, CHECKPOINT, resume=overwrite)
    adapter = source if names_adapter(source, unreachable=False) else None
    if prompts and adapter is None:
        raise DrLLMError(f"prompts take paths with an adapter, but {source!r} is a base model; name an adapter.")
    name = base or source
    if adapter is not None and base is None:
        name = base_of(adapter, load_adapter_config(adapter))
    found = look_at_base(name)
    if path is not None:
        chosen = Chosen(from_path(path, found.num_blocks), "by hand")
    elif report is not None:
        chosen = _of_report(Path(report), found, adapter)
    elif prompts:
        assert adapter is not None
        chosen = _of_prompts(adapter, base, prompts, chat, device)
    else:
        chosen = Chosen(from_edits(skip, repeat, found.num_blocks), "by hand")
    _write(found, chosen, Path(output), max_shard)
    return chosen


def _write(base: Base, chosen: Chosen, output: Path, max_shard: int | str) -> None:
    """Everything into a folder beside `output`, which takes its place once it is whole."""
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        folder = scratch / output.name
        folder.mkdir()
        write_unrolled(base, chosen.decisions, folder, max_shard=max_shard)
        told = {
            "base": full_name(base.name),
            "base_revision": base.commit,
            "model_type": base.stack.model_type,
            "decisions": list(chosen.decisions),
            "chosen": chosen.how,
            "measured": chosen.measured,
            "version": __version__,
        }
        write_json_atomic(folder / MARKER, {"kind": CHECKPOINT})
        write_json_atomic(folder / UNROLLED, told)
        write_card(folder)
        with writing(output):
            if output.is_dir():
                shutil.rmtree(output)
            os.replace(folder, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# Where a path comes from


def _of_prompts(
    adapter: str, base: str | None, prompts: Sequence[str], chat: bool | None, device: str | None
) -> Chosen:
    """The path that the routers choose, in float32: what is counted must not depend on rounding."""
    model, tokenizer = load_routed(adapter, base=base, dtype="float32", device=device)
    learnt = load_training_record(adapter).get("supervision", {}).get("wording")
    wording = learnt if chat is None else "chat" if chat else "plain"
    counts: Counter[Decisions] = Counter()
    for prompt in prompts:
        inputs = prompt_inputs(model, tokenizer, prompt, wording=wording)
        with torch.inference_mode():
            model(**inputs, use_cache=False)
        counts[tuple(last_decisions(model)[0].tolist())] += 1
    # The shorter one where two are as frequent.
    decisions, count = max(counts.items(), key=lambda item: (item[1], -passes(item[0])))
    whose = f"by the routers of {Path(adapter).name if Path(adapter).is_dir() else adapter}"
    how = f"{whose} for one prompt" if len(prompts) == 1 else f"{whose}, for {count} of {len(prompts)} prompts"
    return Chosen(decisions, how)


def _of_report(place: Path, base: Base, adapter: str | None) -> Chosen:
    """The best static path of a probe or of an evaluation with baselines, the base's own left out."""
    file = place / REPORT if place.is_dir() else place
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        chosen = _of_probe(report) if "static_path" in report else _of_evaluation(report)
    except DrLLMError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DrLLMError(
            f"{file} must be a report of drllm probe, or of drllm eval with --baselines, but it is missing, damaged or "
            f"has no static path; name another folder, or give the path by hand."
        ) from error
    check(chosen.decisions, base.num_blocks)
    measured_with = report["base"] if isinstance(report["base"], str) else None
    if measured_with is not None and Path(measured_with).name != Path(base.name).name:
        raise DrLLMError(
            f"{file} must be of the base {base.name!r}, but it was measured with {measured_with!r}; name that one, or "
            f"give the path by hand."
        )
    if adapter is not None and report.get("adapter_checksum") not in (None, load_adapter_config(adapter).checksum):
        raise DrLLMError(
            f"{file} must be of the adapter {adapter!r}, but it was measured with other weights; evaluate it again."
        )
    if chosen.decisions == execute_all(base.num_blocks):
        raise DrLLMError(f"the best static path of {file} is the base model itself; there is nothing to export.")
    return chosen


def _of_probe(report: dict[str, Any]) -> Chosen:
    blocks = int(report["num_blocks"])
    decisions = tuple(report["static_path"])
    kept = next(value for value, spent in report["curves"][STATIC] if spent == passes(decisions))
    measured = {
        "questions": sum(report["questions"].values()),
        "sources": report["sources"],
        "settings": f"{report['mode']}, {report['dtype']}",
        "how": "The figures are agreement with the base model's own continuations, token by token; the blocks left out "
        "were chosen on the same prompts.",
        "rows": [
            {"name": PROBED_BASE, "accuracy": 1.0, "passes": blocks},
            {"name": STATIC, "accuracy": kept, "passes": passes(decisions)},
        ],
    }
    return Chosen(decisions, "as the best static path of a probe (drllm probe)", measured)


def _of_evaluation(report: dict[str, Any]) -> Chosen:
    static: list[dict[str, Any]] = report["baselines"]["static"]
    base = next(row for row in static if row["name"] == "base")
    others = [row for row in static if row["decisions"] != base["decisions"]]
    if not others:
        return Chosen(tuple(base["decisions"]), "")
    best = max(others, key=lambda row: (row["value"], -row["passes"]))
    measured = {
        "questions": report["baselines"]["questions"],
        "sources": report["sources"],
        "settings": f"{report['mode']}, {report['dtype']}",
        "how": f"The path is the most accurate of {len(others)} on these questions, which flatters it a little.",
        "rows": [
            {"name": row["name"], "accuracy": row["value"], "interval": row["interval"], "passes": row["passes"]}
            for row in (base, best)
        ],
    }
    return Chosen(tuple(best["decisions"]), f"as the best static path of an evaluation ({best['name']})", measured)
