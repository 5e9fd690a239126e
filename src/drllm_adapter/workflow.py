"""The jobs behind the commands, from folder to folder: search paths, train routers on them, evaluate the adapter."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from peft import get_peft_model
from rich.console import Console
from rich.progress import Progress

from . import __version__
from .adapter.base import fingerprint
from .adapter.config import DrLLMConfig
from .adapter.steering import set_depth_control, set_layer_budget
from .decisions import Decisions
from .download import fetch_supervision, split_revision
from .effects import MARGIN_OF_PROBABILITY, regress_effects, static_at
from .engine import GIGABYTE, SharingScorer, score_paths
from .errors import DrLLMError
from .evaluation import (
    SCORES,
    Effort,
    Report,
    compare,
    compare_with_baselines,
    plot_layers,
    plot_tradeoff,
    score_both,
    sweep_controls,
)
from .files import check_claim, claim_folder, write_json_atomic
from .hub import write_card
from .jobs import Processes, open_folder
from .loading import load_base, load_routed, refuse_folder_as_base, route_base
from .scoring import Score, Scorer
from .search import (
    Row,
    SearchConfig,
    SearchEstimate,
    SearchSummary,
    choose_labels,
    estimate_search,
    read_rows,
    read_search_info,
    run_search,
)
from .search.rows import INFO
from .tasks import Prompt, Question, build_prompts, digest_of, sources_of
from .training import (
    EffectRegression,
    TrainingConfig,
    TrainingResult,
    check_labels,
    collect_features,
    load_weights_into,
    plot_curves,
    train_routers,
)

if TYPE_CHECKING:
    from .evaluation.lm_eval import HarnessReport
    from .evaluation.probe import ProbeReport

ADAPTER = "adapter"
SUPERVISION = "supervision set"
EVALUATION = "evaluation"
BEGUN = "begun.json"
TRAINING_REPORT, EVALUATION_REPORT = "training.json", "report.json"
PROBE = "probe"


@dataclass(frozen=True)
class Labels:
    """What is learnt from the paths that were tried.

    Attributes:
        rule: "weighted" (several paths a question), or "price" or "shortest" (the paper's), one, see `search.labels`;
            or "effects", a regression over all of them, see `training.objectives`.
        price: of L block passes, in probability of the right answer.
    """

    rule: str = "weighted"
    price: float = 0.4


def search_paths(
    base: str,
    questions: Sequence[Question],
    output: str | os.PathLike[str],
    *,
    mode: str,
    config: SearchConfig,
    labels: Labels | None = None,
    resume: bool = False,
    bundle: int = 64,
    memory: float = 2.0,
    dtype: str = "auto",
    device: str | None = None,
    max_new_tokens: int | None = None,
    console: Console | None = None,
    log: TextIO | None = None,
) -> SearchSummary:
    """Search better layer paths for every question; the supervision set lies in the folder `output` afterwards.

    Under `accelerate launch` every process calls this, and they share the questions.

    Args:
        base: folder or Hub name of the frozen model.
        mode: "letter", "cloze", "contrast" or "free", what counts as an answer.
        bundle: questions searched side by side.
        memory: gigabytes of hidden states that are kept for the next paths of a bundle.
        resume: go on with what an interrupted run left in `output`.
        log: progress goes here as JSON lines, in place of a bar.

    Raises:
        DrLLMError: see `load_base`, `build_prompt`, `run_search`.
        Interrupted: on SIGINT or SIGTERM, after the bundle in flight.
    """
    labels = labels or Labels()
    processes = Processes.current()
    if dtype == "auto" and resume:
        dtype = _begun_dtype(output, INFO)
    model, tokenizer = _load(
        lambda dtype: load_base(base, dtype=dtype, device=device or processes.device), dtype, device, processes
    )
    prompts = _prompts(questions, mode, tokenizer, max_new_tokens)
    scorer = SharingScorer(
        route_base(model), tokenizer, memory=int(memory * GIGABYTE), batch_size=bundle, notice=_teller(console)
    )
    for prompt in prompts:
        scorer.plain.encode(prompt)  # what does not fit the model is refused before anything is written
    summary = run_search(
        questions,
        prompts,
        scorer,
        config,
        output,
        rule=labels.rule,
        price=labels.price,
        resume=resume,
        bundle=bundle,
        base_model=_full_name(base),
        base_revision=getattr(model.config, "_commit_hash", None),
        base_fingerprint=fingerprint(model),
        dtype=_dtype_name(model),
        processes=processes,
        console=console,
        log=log,
    )
    if processes.is_main:
        write_card(output)
    return summary


def estimate_paths(
    base: str,
    questions: Sequence[Question],
    *,
    mode: str,
    config: SearchConfig,
    bundle: int = 64,
    memory: float = 2.0,
    dtype: str = "auto",
    device: str | None = None,
    max_new_tokens: int | None = None,
    console: Console | None = None,
) -> SearchEstimate:
    """What `search_paths` with the same arguments will cost on this device; a few questions are searched for it."""
    model, tokenizer = load_base(base, dtype=dtype, device=device)
    prompts = _prompts(questions, mode, tokenizer, max_new_tokens)
    scorer = SharingScorer(
        route_base(model), tokenizer, memory=int(memory * GIGABYTE), batch_size=bundle, notice=_teller(console)
    )
    hidden = console is None or not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task("trying", total=1.0)
        return estimate_search(prompts, scorer, config, lambda done: progress.update(bar, completed=done))


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
        resume: go on with what an interrupted training left in `output`.
        log: progress goes here as JSON lines, in place of a bar.

    Raises:
        DrLLMError: the set was made with another base, or holds nothing to learn, or see `collect_features` and
            `train_routers`.
        Interrupted: on SIGINT or SIGTERM, with everything saved.
    """
    check_claim(output, ADAPTER, resume=resume)
    config = config or TrainingConfig()
    adapter = adapter or DrLLMConfig()
    if config.hidden != adapter.router_width:
        config = replace(config, hidden=adapter.router_width)
    source = fetch_supervision(supervision)
    info = read_search_info(source)
    labels = None
    if rule is not None or price is not None or info["rule"] is not None:
        labels = Labels(rule or info["rule"] or "price", (info["price"] or 0.0) if price is None else price)
    rows, decisions, weights = _examples(read_rows(source), labels, supervision)
    name = base or info["base_model"]
    if base is None and source != Path(supervision):
        refuse_folder_as_base(str(supervision), name)
    processes = Processes.current()
    folder = Path(output)
    if dtype == "auto" and resume:
        dtype = _begun_dtype(folder, BEGUN)
    model, tokenizer = _load(
        lambda dtype: load_base(name, dtype=dtype, device=device or processes.device), dtype, device, processes
    )
    found = fingerprint(model)
    if info["base_fingerprint"] not in (None, found):
        raise DrLLMError(
            f"the supervision set {supervision} was made with {info['base_model']} (weights "
            f"{info['base_fingerprint']}), but the base {name} has weights {found}; train with the base that was "
            f"searched, or search again."
        )
    model.name_or_path, adapter.revision = split_revision(_full_name(name))  # PEFT writes it into the adapter
    routed = get_peft_model(model, adapter).eval()
    # What routers read along: the paths to imitate, or for effects the best static path at this price.
    paths = np.array(decisions, dtype=np.int8)
    forced, average = paths.copy(), None
    if labels is not None and labels.rule == "effects":
        average = regress_effects(row.paths for row in rows)
        forced[:] = static_at(average, MARGIN_OF_PROBABILITY * labels.price)
    ids = [row.id for row in rows]
    check_labels(ids, paths[:, adapter.routed_blocks(paths.shape[1])], config)
    begun = {
        "supervision": _supervision_digest(rows, [paths, forced, weights]),
        "labels": None if labels is None else asdict(labels),
        "base_fingerprint": found,
        "training": asdict(config),
        "windows": adapter.num_windows,
        "layers": adapter.routed_blocks(paths.shape[1]),
        "dtype": _dtype_name(model),
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
                [row.prompt for row in rows],
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
            regression = EffectRegression.of([row.paths for row in rows], store.layers, per_model)
            effects = (regression, torch.from_numpy(average[list(store.layers)]))
            store = replace(store, labels=paths)
        checkpoint = folder / "checkpoint.safetensors"
        place = None if device == "auto" else device
        result = train_routers(
            store,
            config,
            example_weights=weights,
            effects=effects,
            device=place,
            checkpoint=checkpoint,
            console=console,
            log=log,
        )
        _write_adapter(folder, routed, adapter, config, rows, info, labels, result)
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
    rows: Sequence[Row],
    info: dict[str, Any],
    labels: Labels | None,
    result: TrainingResult,
) -> None:
    """The trained adapter, its card, curves and report."""
    facts = {
        "version": __version__,
        "libraries": {name: version(name) for name in ("torch", "transformers", "peft")},
        "supervision": {
            "questions": len({row.id for row in rows}),
            "tasks": sorted({row.task for row in rows}),
            "mode": rows[0].mode,
            "sources": info.get("sources", []),
            "labels": {"rule": info["rule"], "price": info["price"]} if labels is None else asdict(labels),
            "search": info["search"],
            "base_model": info["base_model"],
            "base_revision": info["base_revision"],
            "base_fingerprint": info["base_fingerprint"],
        },
        "training": asdict(config),
        "metrics": result.metrics,
        "best_epoch": result.best_epoch,
    }
    load_weights_into(routed, result.weights, result.layers)
    adapter.training = facts
    routed.save_pretrained(str(folder))
    plot_curves(result, folder / "curves.png")
    write_json_atomic(folder / TRAINING_REPORT, {**facts, "history": result.history, "lines": result.lines})
    write_card(folder)


def evaluate_adapter(
    adapter: str,
    questions: Sequence[Question],
    output: str | os.PathLike[str] | None,
    *,
    mode: str,
    base: str | None = None,
    batch_size: int = 16,
    depth_control: float | None = None,
    layer_budget: int | None = None,
    supervision: str | os.PathLike[str] | None = None,
    effort: Effort | None = None,
    sweep: bool = False,
    dtype: str = "auto",
    device: str | None = None,
    max_new_tokens: int | None = None,
    resume: bool = False,
    console: Console | None = None,
    log: TextIO | None = None,
) -> Report:
    """Base against routed on the same questions; `report.json` and `layers.png` lie in `output` afterwards.

    Under `accelerate launch` every process calls this, and they share the questions.

    Args:
        adapter: folder or Hub name.
        output: None writes nothing; a folder inside the adapter's own puts the results on its card.
        depth_control, layer_budget: None is what the adapter was saved with.
        supervision: a supervision set of the same base, on whose questions baselines are chosen; None compares with
            none.
        effort: how much is spent on choosing them.
        sweep: also run every control over its range; with this or baselines, `output` gets `tradeoff.png` as well.
        resume: go on with what an interrupted evaluation left in `output`.
        log: progress goes here as JSON lines, in place of a bar.

    Raises:
        DrLLMError: see `load_routed`, `build_prompt`, `Scorer.score`, `compare_with_baselines`, `open_folder`.
        Interrupted: on SIGINT or SIGTERM, after the batch in flight.
    """
    processes = Processes.current()
    if output is None and processes.count > 1:
        raise DrLLMError(
            f"{processes.count} processes evaluate together in a folder, but none was given; name one with --output."
        )
    if output is not None:
        check_claim(output, EVALUATION, resume=resume)
        if dtype == "auto" and resume:
            dtype = _begun_dtype(output, BEGUN)
    model, tokenizer = _load(
        lambda dtype: load_routed(adapter, base=base, dtype=dtype, device=device or processes.device),
        dtype,
        device,
        processes,
    )
    training_rows = None if supervision is None else _training_rows(supervision, questions)
    if depth_control is not None:
        set_depth_control(model, depth_control)
    if layer_budget is not None:
        set_layer_budget(model, layer_budget)
    config: Any = model.peft_config["default"]
    budget = config.layer_budget
    prompts = _prompts(questions, mode, tokenizer, max_new_tokens)
    settings = {
        "adapter": _full_name(adapter),
        "adapter_checksum": config.checksum,
        "base": _full_name(base or str(config.base_model_name_or_path)),
        "tasks": sorted({question.task for question in questions}),
        "sources": sources_of(questions),
        "mode": mode,
        "dtype": _dtype_name(model),
        "depth_control": config.depth_control,
        "layer_budget": config.layer_budget,
        "version": __version__,
    }
    begun = {**settings, "questions_digest": digest_of(questions, prompts), "batch_size": batch_size}
    scorer = Scorer(model, tokenizer, batch_size=batch_size)
    with nullcontext(output) if output is not None else tempfile.TemporaryDirectory() as place:
        assert place is not None
        folder = Path(place)
        with open_folder(
            folder, EVALUATION, BEGUN, begun, resume=resume, processes=processes, finished_as=EVALUATION_REPORT
        ) as locks:
            in_base, routed = score_both(
                scorer, prompts, folder, locks, processes, layer_budget=budget, console=console, log=log
            )
            report = compare(in_base, routed, [question.level for question in questions])
            processes.meet()  # everybody has read the scores
            if processes.is_main:
                if sweep:
                    points = sweep_controls(model, routed, lambda: score_all(scorer, prompts, None, "sweep", console))
                    report = replace(report, sweep=points)
                if training_rows is not None:
                    set_layer_budget(model, None)
                    sharing = SharingScorer(model, tokenizer, notice=_teller(console))
                    table = compare_with_baselines(
                        model,
                        tokenizer,
                        routed,
                        prompts,
                        [question.task for question in questions],
                        training_rows,
                        lambda asked, paths: score_paths(sharing, asked, paths),
                        effort,
                    )
                    set_layer_budget(model, budget)
                    report = replace(report, baselines=table)
                if output is not None:
                    plot_layers(report, folder / "layers.png")
                    if report.baselines is not None or report.sweep is not None:
                        plot_tradeoff(report, folder / "tradeoff.png")
                    write_json_atomic(folder / EVALUATION_REPORT, {**settings, **report.to_json()})
                (folder / BEGUN).unlink()
                shutil.rmtree(folder / SCORES)
    if output is not None and processes.is_main:
        _show_on_card(adapter, folder)
    return report


def _training_rows(supervision: str | os.PathLike[str], tested: Sequence[Question]) -> list[Row]:
    """The rows of a supervision set; a `DrLLMError` when one of its questions is to be tested."""
    rows = read_rows(fetch_supervision(supervision))
    shared = {row.id for row in rows} & {question.id for question in tested}
    texts = {question.question for question in tested}
    leaked = [row.id for row in rows if row.id in shared and any(text in row.prompt for text in texts)]
    if leaked:
        raise DrLLMError(
            f"baselines are chosen on questions that are not tested, but {leaked[0]!r} is in {supervision} and among "
            f"the tested; leave it out with --skip or evaluate on other data."
        )
    return rows


def evaluate_with_lm_eval(
    adapter: str,
    tasks: Sequence[str],
    output: str | os.PathLike[str] | None,
    *,
    include_path: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    base: str | None = None,
    batch_size: int = 16,
    depth_control: float | None = None,
    layer_budget: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
) -> "HarnessReport":
    """Base against routed on tasks of lm-evaluation-harness; `report.json` lies in `output` afterwards.

    Args:
        adapter: folder or Hub name.
        tasks, include_path, limit: see `evaluation.lm_eval.evaluate_with_harness`.
        output: None writes nothing.

    Raises:
        DrLLMError: see `load_routed`, `evaluate_with_harness`.
    """
    # Imported here: it imports torch and the harness is an extra.
    from .evaluation.lm_eval import evaluate_with_harness

    if output is not None:
        check_claim(output, EVALUATION)
    model, tokenizer = load_routed(adapter, base=base, dtype=dtype, device=device)
    if depth_control is not None:
        set_depth_control(model, depth_control)
    if layer_budget is not None:
        set_layer_budget(model, layer_budget)
    report = evaluate_with_harness(
        model, tokenizer, tasks, include_path=include_path, limit=limit, batch_size=batch_size, seed=seed
    )
    if output is not None:
        folder = claim_folder(output, EVALUATION)
        config: Any = model.peft_config["default"]
        settings = {
            "adapter": _full_name(adapter),
            "adapter_checksum": config.checksum,
            "base": _full_name(base or str(config.base_model_name_or_path)),
            "dtype": str(model.dtype).removeprefix("torch."),
            "depth_control": config.depth_control,
            "layer_budget": config.layer_budget,
            "version": __version__,
        }
        write_json_atomic(folder / "report.json", {**settings, **report.to_json()})
        _show_on_card(adapter, folder)
    return report


def _show_on_card(adapter: str, evaluation: Path) -> None:
    """Renew the adapter's card when the evaluation lies inside the adapter's folder."""
    if evaluation.resolve().parent == Path(adapter).resolve():
        write_card(adapter)


def probe_model(
    base: str,
    questions: Sequence[Question],
    output: str | os.PathLike[str],
    *,
    mode: str,
    paths: int = 24,
    edits: int = 6,
    single_edits: int = 16,
    price: float = 0.4,
    batch_size: int = 64,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
    console: Console | None = None,
) -> "ProbeReport":
    """Can routers help this model on these questions? `report.json` and `probe.png` lie in `output` afterwards.

    Args:
        base: folder or Hub name of the frozen model.
        questions: their tasks, or their sources when all are of one task, are what differences are looked for between.
        paths, edits, single_edits: see `evaluation.probe.measure`; `price` see `evaluation.probe.analyse`.

    Raises:
        DrLLMError: see `load_base`, `build_prompt`, `evaluation.probe.measure`.
    """
    from rich.progress import Progress

    from .evaluation.figures import plot_probe
    from .evaluation.probe import analyse, measure

    check_claim(output, PROBE)
    names = [question.task for question in questions]
    if len(set(names)) == 1:
        names = [question.source.name if question.source is not None else question.task for question in questions]
    model, tokenizer = load_base(base, dtype=dtype, device=device)
    scorer = SharingScorer(route_base(model), tokenizer, batch_size=batch_size, notice=_teller(console))
    prompts = _prompts(questions, mode, tokenizer, None)
    hidden = console is None or not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task("probe", total=1.0)
        measured = measure(
            scorer, prompts, names, paths=paths, edits=edits, single_edits=single_edits, seed=seed,
            show=lambda done: progress.update(bar, completed=done),
        )  # fmt: skip
    report = analyse(measured, price=price, seed=seed)
    folder = claim_folder(output, PROBE)
    settings = {
        "base": _full_name(base),
        "base_fingerprint": fingerprint(model),
        "sources": sources_of(questions),
        "mode": mode,
        "edits": edits,
        "single_edits": single_edits,
        "seed": seed,
        "dtype": str(model.dtype).removeprefix("torch."),
        "version": __version__,
    }
    write_json_atomic(folder / "report.json", {**settings, **report.to_json()})
    plot_probe(report, folder / "probe.png")
    return report


def score_all(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    decisions: Sequence[tuple[int, ...]] | None,
    what: str,
    console: Console | None,
) -> list[Score]:
    """Scores of all prompts, similar lengths together, with a progress bar."""
    from rich.progress import track

    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].text))
    size = scorer.batch_size
    scores: dict[int, Score] = {}
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    hidden = console is None or not console.is_terminal
    for places in track(batches, what, console=console, transient=True, disable=hidden):
        chosen = None if decisions is None else [decisions[place] for place in places]
        scores.update(zip(places, scorer.score([prompts[place] for place in places], chosen), strict=True))
    return [scores[place] for place in range(len(prompts))]


def _load(
    load: Callable[[str], tuple[Any, Any]], dtype: str, device: str | None, processes: Processes
) -> tuple[Any, Any]:
    """What `load(dtype)` gives; "auto", which is a measurement on a CPU, is what the main process finds.

    Raises:
        DrLLMError: several processes would each spread the model over all devices of their machine.
    """
    if device == "auto" and processes.local_count > 1:
        raise DrLLMError(
            f"with device auto one process uses all devices of its machine, but {processes.local_count} were started "
            f"on it; start one a machine, or one for each group of devices with CUDA_VISIBLE_DEVICES."
        )
    if dtype != "auto" or processes.count == 1 or (device or processes.device) != "cpu":
        return load(dtype)
    loaded: list[tuple[Any, Any]] = []

    def load_first() -> str:
        loaded.append(load(dtype))
        return _dtype_name(loaded[0][0])

    chosen = processes.from_main(load_first)
    return loaded[0] if processes.is_main else load(chosen)


def _supervision_digest(rows: Sequence[Row], learnt: Sequence[NDArray[Any] | None]) -> str:
    """A hash of what is learnt."""
    digest = hashlib.sha256()
    for values in learnt:
        digest.update(b"-" if values is None else values.tobytes())
    for row in rows:
        digest.update(json.dumps([row.id, row.prompt, row.templated]).encode())
    return digest.hexdigest()


def _dtype_name(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _begun_dtype(output: str | os.PathLike[str], name: str) -> str:
    """The dtype of the run that was begun in the folder; "auto" when none was."""
    try:
        return str(json.loads((Path(output) / name).read_text(encoding="utf-8"))["dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        return "auto"


def _prompts(questions: Sequence[Question], mode: str, tokenizer: Any, max_new_tokens: int | None) -> list[Prompt]:
    prompts = build_prompts(questions, mode, tokenizer)
    if max_new_tokens is None:
        return prompts
    return [replace(prompt, max_new_tokens=max_new_tokens) for prompt in prompts]


def _examples(
    rows: Sequence[Row], labels: Labels | None, supervision: str | os.PathLike[str]
) -> tuple[list[Row], list[Decisions], NDArray[np.float32] | None]:
    """What to imitate: a question and a path each, and how much each counts; None where all count alike.

    Without a rule it is what the rows were labelled with.
    """
    if labels is None:
        chosen = [(row, row.decisions, 1.0) for row in rows if row.decisions is not None]
    else:
        chosen = [(row, *label) for row in rows for label in choose_labels(row.paths, labels.rule, labels.price)]
    if not chosen:
        raise DrLLMError(
            f"the supervision set {supervision} must hold at least one question with a "
            f"{labels.rule + ' ' if labels else ''}label, but none of its {len(rows)} has one; search more questions "
            f"or choose another rule."
        )
    weights = np.array([weight for *_, weight in chosen], dtype=np.float32)
    one_each = (weights == 1).all()
    return [row for row, *_ in chosen], [decisions for _, decisions, _ in chosen], None if one_each else weights


def _teller(console: Console | None) -> Callable[[str], None]:
    """Where a scorer's notices go: above the progress bar, or a warning when there is no console."""
    return warnings.warn if console is None else partial(console.print, highlight=False, soft_wrap=True)


def _full_name(name: str) -> str:
    """A folder's absolute path, so that an adapter finds its base from anywhere; a Hub name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
