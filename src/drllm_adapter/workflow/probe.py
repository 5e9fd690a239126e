"""A base and questions in; out comes whether routers can help."""

import os
from collections.abc import Callable, Sequence

from rich.console import Console

from .. import __version__
from ..adapter.base_identity import fingerprint
from ..evaluation.figures import plot_probe
from ..evaluation.probe import ProbeReport, analyse, measure
from ..files import check_claim, claim_folder, write_json_atomic
from ..jobs import job_progress
from ..models.loading import load_base, route_base
from ..scoring.shared_prefix import SharingScorer
from ..tasks import Question, sources_of
from .begin import dtype_name, full_name, prompts_of, teller

PROBE = "probe"


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
    grader: str | None = None,
    skip_bad: Callable[[str], None] | None = None,
    dtype: str = "auto",
    device: str | None = None,
    console: Console | None = None,
) -> ProbeReport:
    """Can routers help this model on these questions? `report.json` and `probe.png` lie in `output` afterwards.

    Args:
        base: folder or Hub name of the frozen model.
        questions: their tasks, or their sources when all are of one task, are what differences are looked for between.
        paths, edits, single_edits: see `evaluation.probe.measure`; `price` see `evaluation.probe.analyse`.
        grader, skip_bad: see `search_paths`.

    Raises:
        DrLLMError: see `load_base`, `build_prompt`, `evaluation.probe.measure`.
    """
    check_claim(output, PROBE)
    model, tokenizer = load_base(base, dtype=dtype, device=device)
    scorer = SharingScorer(route_base(model), tokenizer, batch_size=batch_size, notice=teller(console))
    questions, prompts = prompts_of(questions, mode, scorer.plain, grader=grader, skip_bad=skip_bad)
    names = [question.task for question in questions]
    if len(set(names)) == 1:
        names = [question.source.name if question.source is not None else question.task for question in questions]
    with job_progress("probe", "%", 100, console=console) as progress:
        measured = measure(
            scorer, prompts, names, paths=paths, edits=edits, single_edits=single_edits, seed=seed,
            show=lambda done: progress.update(100 * done),
        )  # fmt: skip
    report = analyse(measured, price=price, seed=seed)
    folder = claim_folder(output, PROBE)
    settings = {
        "base": full_name(base),
        "base_fingerprint": fingerprint(model),
        "sources": sources_of(questions),
        "mode": mode,
        "edits": edits,
        "single_edits": single_edits,
        "seed": seed,
        "dtype": dtype_name(model),
        "version": __version__,
    }
    write_json_atomic(folder / "report.json", {**settings, **report.to_json()})
    plot_probe(report, folder / "probe.png")
    return report
