"""Running many searches side by side, saving every finished bundle of questions, and going on after a kill.

Questions are cut into bundles of similar length. The searches of a bundle advance together: in each round every one
proposes a path and all of them are scored in one call. What a bundle computes depends on its own questions alone, so
rows do not depend on how often, or where, the run was interrupted.
"""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..decisions import CLASS_NAMES, passes
from ..errors import DrLLMError
from ..files import claim_folder, write_json_atomic
from ..tasks import Prompt, Question, sources_of
from .bundle import AnySearch, PathScorer, search_bundle
from .labels import choose_label
from .rows import DATA, INFO, KIND, Row, read_file, write_rows
from .tree import SearchConfig

SHARDS = "shards"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class SearchSummary:
    """What a search found, over all rows of the set.

    Attributes:
        questions: searched.
        kept: that have a label.
        base_accuracy: share right along the base model's own path.
        label_accuracy: share of the kept questions that are right along their label.
        fixed: share of the questions the base got wrong whose label is right; None when it got none wrong.
        broken: share of the questions the base got right whose label is wrong; None when it got none right.
        mean_passes: block passes of the labels; `num_blocks` of the base.
        decisions: label decisions by class name.
        paths: scored in all.
        seconds: of this run; a resumed run counts its own part.
        paths_per_second: of this run; None when it scored nothing.
    """

    questions: int
    kept: int
    base_accuracy: float
    label_accuracy: float
    fixed: float | None
    broken: float | None
    mean_passes: float
    num_blocks: int
    decisions: dict[str, int]
    paths: int
    seconds: float
    paths_per_second: float | None

    def table(self) -> Table:
        """The summary for people."""
        total = sum(self.decisions.values())
        table = Table("searched", "value", title="Search", title_justify="left")
        table.add_row("questions kept", f"{self.kept:,} of {self.questions:,}")
        table.add_row("base accuracy", _percent(self.base_accuracy))
        table.add_row("accuracy along the labels", _percent(self.label_accuracy))
        table.add_row("wrong questions fixed", _percent(self.fixed))
        table.add_row("right questions broken", _percent(self.broken))
        table.add_row("mean passes", f"{self.mean_passes:.2f} (base: {self.num_blocks})")
        for name in CLASS_NAMES:
            table.add_row(f"decisions: {name}", _percent(self.decisions[name] / total if total else None))
        speed = "" if self.paths_per_second is None else f" ({self.paths_per_second:.1f} a second)"
        table.add_row("paths scored", f"{self.paths:,}{speed}")
        return table


def run_search(
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    scorer: PathScorer,
    config: SearchConfig,
    output: str | os.PathLike[str],
    *,
    rule: str = "price",
    price: float = 0.4,
    resume: bool = False,
    bundle: int = 16,
    base_model: str = "",
    base_revision: str | None = None,
    base_fingerprint: str = "",
    dtype: str = "",
    console: Console | None = None,
) -> SearchSummary:
    """Search every question and write the supervision set into the folder `output`.

    Args:
        questions, prompts: equally many; `prompts[i]` asks `questions[i]`.
        scorer: the model, as far as the search knows it.
        rule, price: the label rule, see `labels.py`; a set can be relabelled later.
        resume: go on with an interrupted search of the same questions and constants.
        bundle: questions that are searched side by side.
        base_model, base_revision, base_fingerprint, dtype: of the model behind the scorer; kept in the set.
        console: for the progress bar; None shows nothing.

    Raises:
        DrLLMError: no questions, ids that occur twice, a folder that holds something else or another search, a full
            disk.
    """
    _check_questions(questions)
    choose_label((), rule, price)
    if bundle < 1:
        raise DrLLMError(f"bundle must be a whole number of at least 1, but {bundle!r} was given; correct it.")
    info = {
        "search": asdict(config),
        "rule": rule,
        "price": price,
        "bundle": bundle,
        "questions": len(questions),
        "questions_digest": _digest(questions, prompts),
        "sources": sources_of(questions),
        "num_blocks": scorer.num_blocks,
        "base_model": base_model,
        "base_revision": base_revision,
        "base_fingerprint": base_fingerprint,
        "dtype": dtype,
    }
    folder = claim_folder(output, KIND, resume=resume)
    _check_same_search(folder, info)
    started = time.perf_counter()
    scored = 0
    if not (folder / DATA).exists():
        shards = folder / SHARDS
        shards.mkdir(exist_ok=True)
        # Prompts of a bundle run as one padded batch.
        order = sorted(range(len(questions)), key=lambda place: (len(prompts[place].text), place))
        bundles = [order[start : start + bundle] for start in range(0, len(order), bundle)]
        done = 0
        with _progress(console) as progress:
            bar = progress.add_task("search", total=len(questions))
            for number, places in enumerate(bundles):
                path = shards / f"{number:06d}.parquet"
                if not path.exists():
                    asked = [(questions[place], prompts[place]) for place in places]
                    searches = search_bundle(
                        [question.id for question, _ in asked],
                        [prompt for _, prompt in asked],
                        scorer,
                        config,
                        partial(_show, progress, bar, done),
                    )
                    scored += sum(len(search.paths) for search in searches)
                    write_rows(path, [_row(*pair, search, info) for pair, search in zip(asked, searches, strict=True)])
                done += len(places)
                progress.update(bar, completed=done)
        _compact(folder, len(bundles), [question.id for question in questions])
    seconds = time.perf_counter() - started
    summary = summarise(read_file(folder / DATA), scorer.num_blocks, seconds, scored)
    write_json_atomic(folder / SUMMARY, asdict(summary))
    return summary


def summarise(rows: Sequence[Row], num_blocks: int, seconds: float = 0.0, scored: int = 0) -> SearchSummary:
    """The summary of a set; `scored` paths were scored in `seconds`."""
    kept = [row for row in rows if row.decisions is not None]
    right = {row.id: next(path.correct for path in row.paths if path.decisions == row.decisions) for row in kept}
    wrong_before = [row for row in rows if not row.base_correct]
    right_before = [row for row in rows if row.base_correct]
    counts = Counter(decision for row in kept for decision in row.decisions or ())
    return SearchSummary(
        questions=len(rows),
        kept=len(kept),
        base_accuracy=len(right_before) / len(rows),
        label_accuracy=sum(right.values()) / max(1, len(kept)),
        fixed=sum(right.get(row.id, False) for row in wrong_before) / len(wrong_before) if wrong_before else None,
        broken=sum(not right.get(row.id, True) for row in right_before) / len(right_before) if right_before else None,
        mean_passes=sum(passes(row.decisions or ()) for row in kept) / max(1, len(kept)),
        num_blocks=num_blocks,
        decisions={name: counts[value] for value, name in enumerate(CLASS_NAMES)},
        paths=sum(len(row.paths) for row in rows),
        seconds=seconds,
        paths_per_second=scored / seconds if scored else None,
    )


def _row(question: Question, prompt: Prompt, search: AnySearch, info: dict[str, Any]) -> Row:
    paths = tuple(search.paths)
    answer = prompt.answer if isinstance(prompt.answer, str) else prompt.continuations[prompt.answer].strip()
    return Row(
        id=question.id,
        task=question.task,
        mode=prompt.mode,
        prompt=prompt.text,
        templated=prompt.templated,
        continuations=prompt.continuations,
        answer_index=prompt.answer if isinstance(prompt.answer, int) else None,
        answer=answer,
        level=question.level,
        score="reference" if prompt.mode == "free" else "choices",
        base_correct=paths[0].correct,
        decisions=choose_label(paths, info["rule"], info["price"]),
        paths=paths,
        simulations=search.simulations,
        seed=info["search"]["seed"],
        base_model=info["base_model"],
        base_revision=info["base_revision"],
    )


def _compact(folder: Path, shards: int, ids: Sequence[str]) -> None:
    """Join the shards to the one file that `datasets` reads, in the order of the ids, then remove them."""
    paths = [folder / SHARDS / f"{number:06d}.parquet" for number in range(shards)]
    (folder / DATA).parent.mkdir(exist_ok=True)
    rows = {row.id: row for path in paths for row in read_file(path)}
    write_rows(folder / DATA, [rows[name] for name in ids])
    # A killed run may have left temporary files beside the shards.
    shutil.rmtree(folder / SHARDS)


def _check_questions(questions: Sequence[Question]) -> None:
    if not questions:
        raise DrLLMError("a search needs at least one question, but none was given; check the data and --limit.")
    name, times = Counter(question.id for question in questions).most_common(1)[0]
    if times > 1:
        raise DrLLMError(f"question ids must be unique, but {name!r} occurs {times} times; rename the others.")


def _check_same_search(folder: Path, info: dict[str, Any]) -> None:
    """Write down what is searched, or refuse to go on with another search than the one begun here."""
    path = folder / INFO
    if not path.exists():
        write_json_atomic(path, info)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    for name, value in info.items():
        if begun.get(name) != value:
            raise DrLLMError(
                f"the search in {folder} must go on as it began, with {name} {begun.get(name)!r}, but {value!r} was "
                f"given; repeat the first command or choose another folder."
            )


def _digest(questions: Sequence[Question], prompts: Sequence[Prompt]) -> str:
    content = [
        [question.id, *map(str, asdict(prompt).values())] for question, prompt in zip(questions, prompts, strict=True)
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("questions"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    )


def _show(progress: Progress, bar: TaskID, before: int, done: float) -> None:
    progress.update(bar, completed=before + done)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
