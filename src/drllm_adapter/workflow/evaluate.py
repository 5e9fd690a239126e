"""An adapter and questions in, a report out: base against routed, by our scorer or by lm-evaluation-harness."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from .. import __version__
from ..adapter.steering import set_depth_control, set_layer_budget
from ..decisions import Decisions
from ..errors import DrLLMError
from ..evaluation import (
    SCORES,
    Effort,
    Report,
    ScorePaths,
    compare,
    compare_with_baselines,
    plot_layers,
    plot_tradeoff,
    score_both,
    scoring_all,
    sweep_controls,
    verdict,
)
from ..evaluation.lm_eval import HarnessReport, evaluate_with_harness
from ..files import EVALUATION, REPORT, check_claim, claim_folder, write_json_atomic
from ..hub import write_card
from ..hub.reports import FIGURE
from ..jobs import BEGUN, Processes, is_unfinished, job_progress, open_folder, track
from ..models.download import fetch_supervision, load_training_record
from ..models.loading import load_routed
from ..scoring.plain import Score, Scorer
from ..scoring.references import REFERENCES, add_references
from ..scoring.shared_prefix import SharingScorer, score_paths
from ..supervision import Rows
from ..tasks import QUESTIONS_CHANGED, Prompt, Question, digest_of, sources_of
from ..training.trained_on import trained_on
from .begin import dtype_name, full_name, load_once, prompts_of, teller
from .chance import chance_sentence


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
    chat_template: bool = True,
    grader: str | None = None,
    skip_bad: Callable[[str], None] | None = None,
    resume: bool = False,
    console: Console | None = None,
    log: TextIO | None = None,
) -> Report:
    """Base against routed on the same questions; `report.json` and `layers.png` lie in `output` afterwards.

    A warning, the report and the card say when questions of the adapter's training are among them.

    Under `accelerate launch` every process calls this, and they share the questions.

    Args:
        adapter: folder or Hub name.
        output: None writes nothing; a folder inside the adapter's own puts the results on its card.
        depth_control, layer_budget: None is what the adapter was saved with.
        supervision: a supervision set of the same base, on whose questions baselines are chosen; None compares with
            none.
        effort: how much is spent on choosing them.
        max_new_tokens, chat_template, grader, skip_bad: see `search_paths`.
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
        check_claim(output, EVALUATION, resume=resume, unfinished=is_unfinished(output, BEGUN, REPORT))
    begun_in = Path(output) / BEGUN if output is not None and resume else None
    model, tokenizer = load_once(partial(load_routed, adapter, base=base), dtype, device, processes, begun_in)
    training_rows = None if supervision is None else _training_rows(supervision, questions)
    if depth_control is not None:
        set_depth_control(model, depth_control)
    if layer_budget is not None:
        set_layer_budget(model, layer_budget)
    config: Any = model.peft_config["default"]
    budget = config.layer_budget
    scorer = Scorer(model, tokenizer, batch_size=batch_size)
    questions, prompts = prompts_of(
        questions, mode, scorer, max_new_tokens=max_new_tokens, chat_template=chat_template, grader=grader,
        skip_bad=skip_bad,
    )  # fmt: skip
    settings = {
        **_settings(adapter, base, model),
        "tasks": sorted({question.task for question in questions}),
        "sources": sources_of(questions),
        "mode": mode,
    }
    warning = trained_on(load_training_record(adapter), [prompt.text for prompt in prompts], mode, settings["sources"])
    if warning is not None and processes.is_main:
        teller(console)(f"Warning: {warning}")
    begun = {**settings, "questions_digest": digest_of(questions, prompts), "batch_size": batch_size}
    with nullcontext(output) if output is not None else tempfile.TemporaryDirectory() as place:
        assert place is not None
        folder = Path(place)
        with open_folder(
            folder,
            EVALUATION,
            BEGUN,
            begun,
            resume=resume,
            processes=processes,
            finished_as=REPORT,
            refusals={"questions_digest": QUESTIONS_CHANGED},
        ) as locks:
            prompts = add_references(
                scorer, prompts, folder=folder, locks=locks, processes=processes, console=console, log=log
            )
            in_base, routed = score_both(
                scorer, prompts, folder, locks, processes, layer_budget=budget, console=console, log=log
            )
            tasks = [question.task for question in questions]
            report = compare(in_base, routed, [question.level for question in questions], tasks)
            processes.meet()  # everybody has read the scores
            if processes.is_main:
                chance = chance_sentence(
                    prompts, sum(score.correct for score in in_base), lambda prompt: in_base[prompts.index(prompt)].text
                )
                if chance is not None:
                    teller(console)(f"Warning: {chance}")
                if sweep:
                    points = sweep_controls(model, routed, scoring_all(scorer, prompts, "sweep", console, log))
                    report = replace(report, sweep=points)
                if training_rows is not None:
                    set_layer_budget(model, None)
                    sharing = SharingScorer(model, tokenizer, notice=teller(console))
                    table = compare_with_baselines(
                        model,
                        tokenizer,
                        routed,
                        prompts,
                        tasks,
                        training_rows,
                        _with_bars(sharing, console, log),
                        effort,
                    )
                    set_layer_budget(model, budget)
                    report = replace(report, baselines=table)
                if output is not None:
                    plot_layers(report, folder / FIGURE)
                    if report.baselines is not None or report.sweep is not None:
                        plot_tradeoff(report, folder / "tradeoff.png")
                    write_json_atomic(
                        folder / REPORT,
                        {**settings, "trained_on": warning, "verdict": verdict(report), **report.to_json()},
                    )
                track({"evaluation": report.to_json()})
                (folder / BEGUN).unlink()
                shutil.rmtree(folder / SCORES)
                shutil.rmtree(folder / REFERENCES, ignore_errors=True)
    if output is not None and processes.is_main:
        _show_on_card(adapter, folder)
    return report


def _training_rows(supervision: str | os.PathLike[str], tested: Sequence[Question]) -> Rows:
    """The rows of a supervision set; a `DrLLMError` when one of its questions is to be tested."""
    rows = Rows(fetch_supervision(supervision))
    ids, texts = {question.id for question in tested}, {question.question for question in tested}
    for name, prompt in rows.prompts():
        if name in ids and any(text in prompt for text in texts):
            raise DrLLMError(
                f"baselines are chosen on questions that are not tested, but {name!r} is in {supervision} and among "
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
) -> HarnessReport:
    """Base against routed on tasks of lm-evaluation-harness; `report.json` lies in `output` afterwards.

    Args:
        adapter: folder or Hub name.
        tasks, include_path, limit: see `evaluation.lm_eval.evaluate_with_harness`.
        output: None writes nothing.

    Raises:
        DrLLMError: see `load_routed`, `evaluate_with_harness`.
    """
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
        write_json_atomic(folder / REPORT, {**_settings(adapter, base, model), **report.to_json()})
        _show_on_card(adapter, folder)
    track({"evaluation": {f"{item.task}/{item.metric}": vars(item) for item in report.measured}})
    return report


def _with_bars(sharing: SharingScorer, console: Console | None, log: TextIO | None) -> ScorePaths:
    """Scores of prompts along paths, with a bar for each of the steps that the baselines are chosen by."""
    step = count(1)

    def score(asked: Sequence[Prompt], paths: Sequence[Sequence[Decisions]]) -> Sequence[Sequence[Score]]:
        job = f"baselines, step {next(step)}"
        with job_progress(job, "questions", len(asked), console=console, log=log) as progress:
            return score_paths(sharing, asked, paths, show=progress.update)

    return score


def _settings(adapter: str, base: str | None, model: Any) -> dict[str, Any]:
    """What was evaluated and how it was steered, for the report."""
    config: Any = model.peft_config["default"]
    return {
        "adapter": full_name(adapter),
        "adapter_checksum": config.checksum,
        "base": full_name(base or str(config.base_model_name_or_path)),
        "dtype": dtype_name(model),
        "depth_control": config.depth_control,
        "layer_budget": config.layer_budget,
        "version": __version__,
    }


def _show_on_card(adapter: str, evaluation: Path) -> None:
    """Renew the adapter's card when the evaluation lies inside the adapter's folder."""
    if evaluation.resolve().parent == Path(adapter).resolve():
        write_card(adapter)
