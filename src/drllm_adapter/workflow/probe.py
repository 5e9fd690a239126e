"""A base and prompts in; out comes whether routers can help."""

import os
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console

from .. import __version__
from ..adapter.base_identity import fingerprint
from ..evaluation.figures import plot_probe
from ..evaluation.probe import ProbeReport, analyse, measure
from ..files import check_claim, claim_folder, write_json_atomic
from ..jobs import job_progress
from ..models.loading import load_base, route_base
from ..scoring.references import add_references
from ..scoring.shared_prefix import SharingScorer
from ..tasks import Question, sources_of
from .begin import dtype_name, full_name, prompts_of, teller

PROBE = "probe"


def probe_model(
    base: str,
    questions: Sequence[Question],
    output: str | os.PathLike[str],
    *,
    most_skips: int | None = None,
    max_new_tokens: int | None = None,
    chat_template: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    skip_bad: Callable[[str], None] | None = None,
    dtype: str = "auto",
    device: str | None = None,
    console: Console | None = None,
    log: TextIO | None = None,
) -> ProbeReport:
    """Can routers help this model on these prompts? `report.json` and `probe.png` lie in `output` afterwards.

    Args:
        base: folder or Hub name of the frozen model.
        questions: prompts; answers are not used. Their tasks, or their sources when all are of one task, are the kinds
            that are told apart.
        most_skips: see `evaluation.probe.measure`.
        max_new_tokens: of the base's continuations; None is `tasks.SELF_TOKENS`.
        chat_template: whether the tokenizer's words the prompts, where it has one.
        skip_bad: see `search_paths`.
        log: progress goes here as JSON lines, in place of a bar.

    Raises:
        DrLLMError: see `load_base`, `build_prompt`, `evaluation.probe.measure`.
    """
    check_claim(output, PROBE)
    model, tokenizer = load_base(base, dtype=dtype, device=device)
    scorer = SharingScorer(route_base(model), tokenizer, batch_size=batch_size, notice=teller(console))
    questions, prompts = prompts_of(
        questions, "self", scorer.plain, max_new_tokens=max_new_tokens, chat_template=chat_template, skip_bad=skip_bad
    )
    kinds = [question.task for question in questions]
    if len(set(kinds)) == 1:
        kinds = [question.source.name if question.source is not None else question.task for question in questions]
    prompts = add_references(scorer.plain, prompts, console=console, log=log)
    with job_progress("probe", "%", 100, console=console, log=log) as progress:
        measured = measure(
            scorer, prompts, kinds, most_skips=most_skips, show=lambda done: progress.update(100 * done)
        )  # fmt: skip
    report = analyse(measured, seed=seed)
    folder = claim_folder(output, PROBE)
    settings = {
        "base": full_name(base),
        "base_fingerprint": fingerprint(model),
        "sources": sources_of(questions),
        "mode": "self",
        "max_new_tokens": prompts[0].max_new_tokens,
        "seed": seed,
        "dtype": dtype_name(model),
        "version": __version__,
    }
    write_json_atomic(folder / "report.json", {**settings, **report.to_json()})
    plot_probe(report, folder / "probe.png")
    return report
