"""Questions and a base in, a supervision set out."""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from ..adapter.base_identity import fingerprint, revision
from ..decisions import execute_all
from ..hub import write_card
from ..jobs import Processes, job_progress
from ..models.loading import load_base, route_base
from ..scoring.references import REFERENCES, add_references
from ..scoring.shared_prefix import GIGABYTE, SharingScorer
from ..search import SearchConfig, SearchEstimate, SearchSummary, estimate_search, run_search
from ..supervision import Labels
from ..supervision.rows import INFO
from ..tasks import Question
from .begin import dtype_name, full_name, load_once, prompts_of, teller
from .chance import chance_sentence


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
    chat_template: bool = True,
    grader: str | None = None,
    skip_bad: Callable[[str], None] | None = None,
    console: Console | None = None,
    log: TextIO | None = None,
) -> SearchSummary:
    """Search better layer paths for every question; the supervision set lies in the folder `output` afterwards.

    Under `accelerate launch` every process calls this, and they share the questions.

    Args:
        base: folder or Hub name of the frozen model.
        mode: "letter", "cloze", "contrast" or "free", what counts as an answer; or "self", the base model's own
            continuation is what paths are compared with.
        bundle: questions searched side by side.
        memory: gigabytes of hidden states that are kept for the next paths of a bundle.
        max_new_tokens: of generated answers and continuations; None is the mode's own length.
        chat_template: whether the tokenizer's words the prompts, where it has one.
        grader: of generated answers; None goes by the task and the reference, see `grading.grader_for`.
        skip_bad: told, in a sentence, of every question that cannot be asked and is left out; None refuses it.
        resume: go on with what an interrupted run left in `output`.
        log: progress goes here as JSON lines, in place of a bar.

    Raises:
        DrLLMError: see `load_base`, `build_prompt`, `run_search`.
        Interrupted: on SIGINT or SIGTERM, after the bundle in flight.
    """
    processes = Processes.current()
    begun = Path(output) / INFO if resume else None
    model, tokenizer = load_once(partial(load_base, base), dtype, device, processes, begun)
    scorer = _scorer(model, tokenizer, memory, bundle, console)
    # What does not fit the model is refused before anything is written.
    questions, prompts = prompts_of(
        questions, mode, scorer.plain, max_new_tokens=max_new_tokens, chat_template=chat_template, grader=grader,
        skip_bad=skip_bad,
    )  # fmt: skip
    summary = run_search(
        questions,
        prompts,
        scorer,
        config,
        output,
        labels=labels,
        resume=resume,
        bundle=bundle,
        base_model=full_name(base),
        base_revision=revision(model),
        base_fingerprint=fingerprint(model),
        dtype=dtype_name(model),
        grader=grader,
        complete=lambda prompts, folder, locks: add_references(
            scorer.plain, prompts, folder=folder, locks=locks, processes=processes, console=console, log=log
        ),
        processes=processes,
        console=console,
        log=log,
    )
    if processes.is_main:
        shutil.rmtree(Path(output) / REFERENCES, ignore_errors=True)
        write_card(output)
        base_path = execute_all(scorer.num_blocks)
        sentence = chance_sentence(
            prompts,
            round(summary.base_accuracy * summary.questions),
            lambda prompt: scorer.plain.score([prompt], [base_path])[0].text,
        )
        if sentence is not None:
            teller(console)(f"Warning: {sentence}")
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
    chat_template: bool = True,
    grader: str | None = None,
    skip_bad: Callable[[str], None] | None = None,
    console: Console | None = None,
) -> SearchEstimate:
    """What `search_paths` with the same arguments will cost on this device; a few questions are searched for it."""
    model, tokenizer = load_base(base, dtype=dtype, device=device)
    scorer = _scorer(model, tokenizer, memory, bundle, console)
    _, prompts = prompts_of(
        questions, mode, scorer.plain, max_new_tokens=max_new_tokens, chat_template=chat_template, grader=grader,
        skip_bad=skip_bad,
    )  # fmt: skip
    prompts = add_references(scorer.plain, prompts, console=console)
    with job_progress("estimate", "%", 100, console=console) as progress:
        return estimate_search(prompts, scorer, config, lambda done: progress.update(100 * done))


def _scorer(model: Any, tokenizer: Any, memory: float, bundle: int, console: Console | None) -> SharingScorer:
    bytes_kept = int(memory * GIGABYTE)
    return SharingScorer(route_base(model), tokenizer, memory=bytes_kept, batch_size=bundle, notice=teller(console))
