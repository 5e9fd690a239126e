"""A supervision set in, an adapter out."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any, TextIO

import torch
from numpy.typing import NDArray
from peft import get_peft_model
from rich.console import Console

from .. import __version__
from ..adapter.base_identity import fingerprint, is_fingerprint_of
from ..adapter.config import DrLLMConfig
from ..decisions import ScoredPath
from ..errors import DrLLMError
from ..evaluation import HeldOut, check_limits
from ..files import check_claim, write_json_atomic
from ..hub import write_card
from ..jobs import BEGUN, Processes, is_unfinished, open_folder
from ..models.download import ADAPTER, TRAINING_REPORT, fetch_supervision, find_base, split_revision
from ..models.loading import load_base
from ..supervision import LABEL_RULES, Labels, Row, iterate_rows, read_search_info
from ..supervision.effects import MARGIN_OF_PROBABILITY, regress_effects, static_at
from ..supervision.examples import Prompts, chosen_of, read_examples
from ..training import (
    EffectRegression,
    TrainingConfig,
    TrainingResult,
    check_labels,
    collect_features,
    load_weights_into,
    plot_curves,
    split_questions,
    train_routers,
)
from ..training.trained_on import marks_of, wording
from .begin import dtype_name, full_name, load_once
from .held_out import check_held_out


def train_adapter(
    supervision: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base: str | None = None,
    rule: str | None = None,
    price: float | None = None,
    config: TrainingConfig | None = None,
    adapter: DrLLMConfig | None = None,
    features: str | os.PathLike[str] | None = None,
    max_loss: float | None = None,
    mean_passes: float | None = None,
    resume: bool = False,
    dtype: str = "auto",
    device: str | None = None,
    console: Console | None = None,
    log: TextIO | None = None,
) -> TrainingResult | None:
    """Train routers on a supervision set; the adapter, its training report and its curves lie in `output` afterwards.

    Under `accelerate launch` every process calls this; they share the forward pass over the questions, then the main
    one trains, which takes seconds, and the others, which get None, wait for it.

    Args:
        supervision: folder that `search_paths` wrote, Parquet with such rows, or the name of a dataset on the Hub, see
            `download.HubName`.
        base: None is the model that the set was searched with.
        rule, price: which paths to learn, see `Labels`; None is the rule and the price that each row was searched with.
        adapter: windows, router width and routed blocks; None is the paper's.
        features: folder that keeps what the routers read for the next training on the same labels; None keeps it in
            `output` until the training is finished.
        max_loss, mean_passes: limits that the depth control is set by on the questions held out, see
            `evaluation.hold_to_limits`; what is lost there is measured in any case, but for free answers.
        resume: go on with what an interrupted training left in `output`.
        log: progress goes here as JSON lines, in place of a bar.

    Raises:
        DrLLMError: the set was made with another base, or holds nothing to learn, or see `collect_features` and
            `train_routers`.
        Interrupted: on SIGINT or SIGTERM, with everything saved.
    """
    check_claim(output, ADAPTER, resume=resume, unfinished=is_unfinished(output, BEGUN, TRAINING_REPORT))
    check_limits(max_loss, mean_passes)
    config = config or TrainingConfig()
    adapter = adapter or DrLLMConfig()
    source = fetch_supervision(supervision)
    info = read_search_info(source)
    labels = None
    if rule is not None or price is not None or info["rule"] is not None:
        # Rows that differ in it have no rule, or no price, of the search.
        found_price = Labels().price if info["price"] is None else info["price"]
        labels = Labels(rule or info["rule"] or Labels().rule, found_price if price is None else price)
    rows, paths, weights = read_examples(source, labels, supervision)
    if (max_loss, mean_passes) != (None, None) and any(row.mode == "free" for row in rows):
        raise DrLLMError(
            f"limits are kept on held-out questions whose answers need no generating, but {supervision} has free "
            f"answers; search with --mode contrast or --mode self, or leave --max-loss and --mean-passes out."
        )
    name = base or find_base(supervision, info["base_model"])
    processes = Processes.current()
    folder = Path(output)
    model, tokenizer = load_once(partial(load_base, name), dtype, device, processes, folder / BEGUN if resume else None)
    found = fingerprint(model)
    if info["base_fingerprint"] is not None and not is_fingerprint_of(info["base_fingerprint"], model):
        raise DrLLMError(
            f"the supervision set {supervision} was made with {info['base_model']} (weights "
            f"{info['base_fingerprint']}), but the base {name} has weights {found}; train with the base that was "
            f"searched, or search again."
        )
    model.name_or_path, adapter.revision = split_revision(full_name(name))  # PEFT writes it into the adapter
    routed = get_peft_model(model, adapter).eval()
    # What routers read along: the paths to imitate, or for effects the best static path at this price.
    forced, average = paths.copy(), None

    def tried() -> Iterator[Sequence[ScoredPath]]:
        """The paths tried on the question of each example."""
        for row in iterate_rows(source):
            yield from repeat(row.paths, len(chosen_of(row, labels)))

    if labels is not None and LABEL_RULES[labels.rule].regresses:
        average = regress_effects(tried())
        forced[:] = static_at(average, MARGIN_OF_PROBABILITY * labels.price)
    ids = question_names(rows)
    check_labels(ids, paths[:, adapter.routed_blocks(paths.shape[1])], config)
    begun = {
        "supervision": _supervision_digest(rows, [paths, forced, weights]),
        "labels": None if labels is None else asdict(labels),
        "base_fingerprint": found,
        "training": asdict(config),
        "windows": adapter.num_windows,
        "rms_norm": adapter.rms_norm,
        "router_width": adapter.router_width,
        "layers": adapter.routed_blocks(paths.shape[1]),
        "dtype": dtype_name(model),
    }
    with open_folder(
        folder, ADAPTER, BEGUN, begun, resume=resume, processes=processes, finished_as=TRAINING_REPORT
    ) as locks:
        del locks  # the features have their own; the training itself is one piece
        store_folder = Path(features or folder) / "features"
        try:
            store = collect_features(
                routed,
                tokenizer,
                Prompts(rows),
                forced,
                store_folder,
                ids=ids,
                add_special_tokens=[not row.templated for row in rows],
                processes=processes,
                console=console,
                log=log,
            )
        except DrLLMError:
            if features is None and processes.count == 1:
                shutil.rmtree(store_folder, ignore_errors=True)
            raise
        if not processes.is_main:
            return None
        effects = None
        if average is not None and labels is not None:
            per_model = MARGIN_OF_PROBABILITY * labels.price
            regression = EffectRegression.of(tried(), store.layers, per_model)
            effects = (regression, torch.from_numpy(average[list(store.layers)]))
            store = replace(store, labels=paths)
        checkpoint = folder / "checkpoint.safetensors"
        place = None if device == "auto" else device
        result = train_routers(
            store,
            config,
            router_width=adapter.router_width,
            example_weights=weights,
            effects=effects,
            device=place,
            checkpoint=checkpoint,
            console=console,
            log=log,
        )
        load_weights_into(routed, result.weights, result.layers)
        _, validation = split_questions(ids, config.validation_share, config.seed)
        held_rows = {ids[place]: rows[place] for place in validation}.values()
        held = None
        if all(row.mode != "free" for row in held_rows):
            prompts = [row.to_prompt() for row in held_rows]
            held = check_held_out(
                routed, tokenizer, prompts, max_loss=max_loss, mean_passes=mean_passes, console=console, log=log
            )
        _write_adapter(folder, routed, adapter, config, supervision, rows, info, labels, result, held)
        # The report was written last: from here on the training is finished.
        for unfinished in (folder / BEGUN, checkpoint):
            unfinished.unlink(missing_ok=True)
        if features is None:
            del store
            shutil.rmtree(store_folder)
    return result


def _write_adapter(
    folder: Path,
    routed: Any,
    adapter: DrLLMConfig,
    config: TrainingConfig,
    supervision: str | os.PathLike[str],
    rows: Sequence[Row],
    info: dict[str, Any],
    labels: Labels | None,
    result: TrainingResult,
    held: HeldOut | None,
) -> None:
    """The trained adapter, its card, curves and report."""
    facts = {
        "version": __version__,
        "libraries": {name: version(name) for name in ("torch", "transformers", "peft")},
        "supervision": {
            "questions": len(set(question_names(rows))),
            "tasks": sorted({row.task for row in rows}),
            "mode": info.get("mode") or rows[0].mode,
            "grader": info.get("grader"),
            "wording": wording((row.prompt, row.templated) for row in rows),
            "sources": info.get("sources", []),
            # Where others find it; a folder of this disk is nobody else's.
            "set": None if Path(supervision).exists() else os.fspath(supervision),
            "marks": marks_of(row.prompt for row in rows),
            "labels": {"rule": info["rule"], "price": info["price"]} if labels is None else asdict(labels),
            "search": info["search"],
            "base_model": info["base_model"],
            "base_revision": info["base_revision"],
            "base_fingerprint": info["base_fingerprint"],
        },
        "training": asdict(config),
        "metrics": result.metrics,
        "best_epoch": result.best_epoch,
        "held_out": None if held is None else held.to_json(),
    }
    routed.save_pretrained(str(folder))
    plot_curves(result, folder / "curves.png")
    facts["adapter_checksum"] = adapter.checksum
    write_json_atomic(folder / TRAINING_REPORT, {**facts, "history": result.history, "lines": result.lines})
    write_card(folder)


def question_names(rows: Iterable[Row]) -> list[str]:
    """The id of each row's question; a number more where sets were mixed whose files have the same name."""
    first: dict[str, bytes] = {}
    others: dict[str, list[bytes]] = {}
    names = []
    for row in rows:
        mark = hashlib.sha256(row.prompt.encode()).digest()[:8]
        if first.setdefault(row.id, mark) == mark:
            names.append(row.id)
            continue
        marks = others.setdefault(row.id, [])
        if mark not in marks:
            marks.append(mark)
        names.append(f"{row.id}#{2 + marks.index(mark)}")
    return names


def _supervision_digest(rows: Sequence[Row], learnt: Sequence[NDArray[Any] | None]) -> str:
    """A hash of what is learnt."""
    digest = hashlib.sha256()
    for values in learnt:
        digest.update(b"-" if values is None else values.tobytes())
    for row in rows:
        digest.update(json.dumps([row.id, row.prompt, row.templated]).encode())
    return digest.hexdigest()
