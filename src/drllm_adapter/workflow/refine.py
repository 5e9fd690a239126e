"""Routers in, or none; better ones out, learnt from paths of their own choosing."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch
from peft import get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file

from .. import __version__
from ..adapter.base_identity import fingerprint, revision
from ..adapter.config import DrLLMConfig
from ..evaluation import check_limits
from ..files import check_claim, replacing, write_json_atomic
from ..hub import write_card
from ..jobs import BEGUN, Processes, is_unfinished, open_folder
from ..models.download import ADAPTER, TRAINING_REPORT, is_adapter, load_training_record, split_revision
from ..models.loading import load_base, load_routed
from ..scoring.references import REFERENCES, add_references
from ..scoring.shared_prefix import SharingScorer
from ..supervision.rewards import find_reward
from ..tasks import Prompt, Question, sources_of
from ..training import RefineConfig, Refined, load_weights_into, plot_refinement, read_weights, refine_routers
from ..training.routers import Weights, fresh_weights
from ..training.skips import SkipTraining, learn_skips
from ..training.trained_on import marks_of, wording
from ..training.trainer import split_questions
from .begin import dtype_name, full_name, load_once, prompts_of, teller
from .held_out import check_held_out


def refine_adapter(
    start: str,
    questions: Sequence[Question],
    output: str | os.PathLike[str],
    *,
    mode: str,
    reward: str | None = None,
    config: RefineConfig | None = None,
    init: str | None = None,
    adapter: DrLLMConfig | None = None,
    base: str | None = None,
    max_new_tokens: int | None = None,
    chat_template: bool = True,
    grader: str | None = None,
    skip_bad: Callable[[str], None] | None = None,
    batch_size: int = 64,
    max_loss: float | None = None,
    mean_passes: float | None = None,
    resume: bool = False,
    dtype: str = "auto",
    device: str | None = None,
    console: Console | None = None,
    log: TextIO | None = None,
) -> Refined | None:
    """Refine routers on questions; the adapter, its report and its curves lie in `output` afterwards.

    Under `accelerate launch` every process calls this, and they share the questions of each step.

    Args:
        start: an adapter, whose routers are refined, or a base model, whose blocks all execute at first.
        mode: what counts as an answer, see `tasks.MODES`.
        init: of a base model's routers. "skips" learns from a few random paths of each prompt what it can spare, see
            `training.skips`; with "identity" every block executes. None is "skips" in the mode "self".
        reward: see `supervision.rewards.find_reward`; None is agreement in the mode "self" and probability in others.
        adapter: windows, router width and routed blocks where `start` is a base model.
        base: of the adapter; None is the one that it names.
        chat_template, grader, skip_bad: see `search_paths`.
        batch_size: most rows that a block runs at once.
        max_loss, mean_passes: limits that the depth control is set by on the held-out questions, see
            `evaluation.hold_to_limits`; what is lost there is measured in any case, but for free answers.
        resume: go on with what an interrupted run left in `output`.
        log: progress goes here as JSON lines, in place of a bar.

    Returns:
        None in other processes than the main one.

    Raises:
        DrLLMError: see `load_routed`, `load_base`, `build_prompt`, `refine_routers`.
        Interrupted: on SIGINT or SIGTERM, with everything saved.
    """
    check_claim(output, ADAPTER, resume=resume, unfinished=is_unfinished(output, BEGUN, TRAINING_REPORT))
    check_limits(max_loss, mean_passes)
    config = config or RefineConfig()
    reward = reward or ("agreement" if mode == "self" else "probability")
    value = find_reward(reward)
    begins_with_adapter = is_adapter(start)
    if begins_with_adapter:
        init = None
    elif init is None:
        init = "skips" if mode == "self" else "identity"
    processes = Processes.current()
    folder = Path(output)

    def load(**place: Any) -> tuple[Any, Any]:
        if begins_with_adapter:
            return load_routed(start, base=base, **place)
        model, tokenizer = load_base(start, **place)
        fresh = adapter or DrLLMConfig()
        model.name_or_path, fresh.revision = split_revision(full_name(start))  # PEFT writes it into the adapter
        return get_peft_model(model, fresh).eval(), tokenizer

    model, tokenizer = load_once(load, dtype, device, processes, folder / BEGUN if resume else None)
    settings: DrLLMConfig = model.peft_config["default"]
    weights, layers = read_weights(model)
    if not begins_with_adapter:
        # Fresh routers are random behind a last layer of zeros; here the seed decides what they are.
        sizes = (len(layers), weights["down_weight"].shape[-1], settings.router_width)
        weights |= {"down_weight": fresh_weights(*sizes, torch.Generator().manual_seed(config.seed))["down_weight"]}
    scorer = SharingScorer(model, tokenizer, batch_size=batch_size, notice=teller(console))
    # What does not fit the model is refused before anything is written.
    questions, prompts = prompts_of(
        questions, mode, scorer.plain, max_new_tokens=max_new_tokens, chat_template=chat_template, grader=grader,
        skip_bad=skip_bad,
    )  # fmt: skip
    ids = [question.id for question in questions]
    begun = {
        "start": full_name(start),
        "questions": hashlib.sha256(json.dumps([[p.text, str(p.answer)] for p in prompts]).encode()).hexdigest(),
        "reward": reward,
        "init": init,
        "grader": grader,
        "refinement": asdict(config),
        "dtype": dtype_name(model),
    }
    with open_folder(
        folder, ADAPTER, BEGUN, begun, resume=resume, processes=processes, finished_as=TRAINING_REPORT
    ) as locks:
        checkpoint = folder / "checkpoint.safetensors"
        prompts = add_references(
            scorer.plain, prompts, folder=folder, locks=locks, processes=processes, console=console, log=log
        )
        if init == "skips":
            weights = _start(folder, scorer, prompts, ids, layers, settings, config, processes, console)
        result = refine_routers(
            weights,
            layers,
            scorer,
            prompts,
            ids,
            value,
            config,
            num_windows=settings.num_windows,
            rms_norm=settings.rms_norm,
            processes=processes,
            checkpoint=checkpoint,
            console=console,
            log=log,
        )
        if not processes.is_main:
            return None
        if console is not None:
            for line in result.lines:
                console.print(line, highlight=False, markup=False)
        before = load_training_record(start) if begins_with_adapter else {}
        record = {
            "version": __version__,
            "libraries": {name: version(name) for name in ("torch", "transformers", "peft")},
            "supervision": {
                "questions": len(prompts),
                "tasks": sorted({question.task for question in questions}),
                "mode": mode,
                "grader": grader,
                "wording": wording((prompt.text, prompt.templated) for prompt in prompts),
                "sources": sources_of(questions),
                "marks": sorted({*marks_of(p.text for p in prompts), *before.get("supervision", {}).get("marks", [])}),
                "labels": {"reward": reward, "price": config.price},
                "search": {"init": init or "routers"},
                "base_model": settings.base_model_name_or_path,
                "base_revision": revision(model.get_base_model()),
                "base_fingerprint": fingerprint(model.get_base_model()),
            },
            "training": asdict(config),
            "started_from": before or None,
        }
        load_weights_into(model, result.weights, result.layers)
        if mode != "free":
            held = check_held_out(
                model,
                tokenizer,
                [prompts[row] for row in result.validation],
                max_loss=max_loss,
                mean_passes=mean_passes,
                console=console,
                log=log,
            )
            record["held_out"] = held.to_json()
        model.save_pretrained(str(folder))
        plot_refinement(result, folder / "curves.png")
        record["adapter_checksum"] = settings.checksum
        write_json_atomic(folder / TRAINING_REPORT, {**record, "history": result.history, "lines": result.lines})
        write_card(folder)
        # The report was written last: from here on the refinement is finished.
        for unfinished in (folder / BEGUN, checkpoint, folder / _START):
            unfinished.unlink(missing_ok=True)
        shutil.rmtree(folder / REFERENCES, ignore_errors=True)
    return result


_START = "start.safetensors"


def _start(
    folder: Path,
    scorer: SharingScorer,
    prompts: Sequence[Prompt],
    ids: Sequence[str],
    layers: Sequence[int],
    settings: DrLLMConfig,
    config: RefineConfig,
    processes: Processes,
    console: Console | None,
) -> Weights:
    """Routers that leave out what prompts can spare, learnt by the main process; kept in the folder until the end."""

    def learn() -> None:
        if (folder / _START).exists():
            return
        rows, _ = split_questions(ids, config.validation_share, config.seed)
        weights = learn_skips(
            scorer,
            [prompts[row] for row in rows],
            [ids[row] for row in rows],
            layers,
            config.price,
            SkipTraining(router_width=settings.router_width, seed=config.seed),
            num_windows=settings.num_windows,
            rms_norm=settings.rms_norm,
            console=console,
        )
        with replacing(folder / _START) as temporary:
            save_file(weights, temporary)

    processes.from_main(learn)
    return load_file(folder / _START)
