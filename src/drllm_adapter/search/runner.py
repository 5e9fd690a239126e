"""Searching many questions: bundles of them, shared by any number of processes, each on disk as soon as it is finished.

Questions are cut into bundles of similar length, which are the pieces of the job. What a bundle computes depends on its
own questions alone, so rows depend neither on which process searched them nor on how often the run was interrupted.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from rich.console import Console

from ..errors import DrLLMError, Interrupted, check_range
from ..files import write_json_atomic
from ..jobs import (
    ALONE,
    JobProgress,
    Locks,
    Processes,
    Shards,
    job_progress,
    open_folder,
    stop_on_signals,
    track,
    work_through,
)
from ..supervision.labels import Labels, choose_label
from ..supervision.rows import (
    DATA,
    INFO,
    KIND,
    Row,
    encode_shard,
    iterate_file,
    search_column,
    shard_note,
    shard_table,
    write_tables,
)
from ..tasks import QUESTIONS_CHANGED, Prompt, Question, digest_of, sources_of
from .bundle import AnySearch, PathScorer, Work, length_of, search_bundle
from .journal import Journal
from .summary import SearchSummary, Tally
from .tree import SearchConfig

SHARDS, IN_FLIGHT = "shards", "in_flight"
SUMMARY = "summary.json"
CHAPTER = 8192
"""Questions that bundles are cut from together: a row group of the finished file, and what is in memory to write it."""


def run_search(
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    scorer: PathScorer,
    config: SearchConfig,
    output: str | os.PathLike[str],
    *,
    labels: Labels | None = None,
    resume: bool = False,
    bundle: int = 16,
    base_model: str = "",
    base_revision: str | None = None,
    base_fingerprint: str = "",
    dtype: str = "",
    grader: str | None = None,
    complete: Callable[[Sequence[Prompt], Path, Locks], Sequence[Prompt]] | None = None,
    processes: Processes = ALONE,
    console: Console | None = None,
    log: TextIO | None = None,
) -> SearchSummary:
    """Search every question and write the supervision set into the folder `output`.

    Several processes share the work when each calls this with the same arguments and its own scorer; all return when
    the set is complete.

    Args:
        questions, prompts: equally many; `prompts[i]` asks `questions[i]`.
        scorer: the model, as far as the search knows it.
        labels: which of the paths tried are learnt; None is `Labels()`. A set can be relabelled later.
        resume: go on with an interrupted search of the same questions and constants.
        bundle: questions that are searched side by side.
        base_model, base_revision, base_fingerprint, dtype: of the model behind the scorer; kept in the set.
        grader: that was asked for; kept in the set.
        complete: given the prompts, the folder and its locks before the first bundle: the prompts with what only the
            model knows, the references of the mode "self".
        processes: this one among those that share the work.
        console: for the progress bar; None shows nothing.
        log: progress goes here as JSON lines instead.

    Raises:
        DrLLMError: no questions, ids that occur twice, a folder that holds something else or another search or that
            another run writes to, a full disk.
        Interrupted: on SIGINT or SIGTERM, after the paths that are being scored; every score is kept.
    """
    _check_questions(questions)
    labels = labels or Labels()
    choose_label((), labels.rule, labels.price)
    check_range("bundle", bundle, 1, math.inf)
    info = {
        "search": asdict(config),
        **asdict(labels),
        "bundle": bundle,
        "questions": len(questions),
        "questions_digest": digest_of(questions, prompts),
        "sources": sources_of(questions),
        "mode": _mode_of(questions, prompts),
        "grader": grader,
        "num_blocks": scorer.num_blocks,
        "base_model": base_model,
        "base_revision": base_revision,
        "base_fingerprint": base_fingerprint,
        "dtype": dtype,
    }
    folder = Path(output)
    refusals = {"questions_digest": QUESTIONS_CHANGED}
    with open_folder(
        folder,
        KIND,
        INFO,
        info,
        resume=resume,
        processes=processes,
        finished_as=SUMMARY,
        refuse_finished=False,
        refusals=refusals,
    ) as locks:
        if not (folder / DATA).exists() or (_saved_summary(folder) is None and (folder / SHARDS).exists()):
            completed = prompts if complete is None else complete(prompts, folder, locks)
            run = _Run(questions, completed, scorer, config, info, folder)
            run.search(locks, processes, console if processes.is_main else None, log if processes.is_main else None)
        elif processes.is_main and _saved_summary(folder) is None:
            tally = Tally.of(iterate_file(folder / DATA))
            write_json_atomic(folder / SUMMARY, asdict(SearchSummary.of(tally, scorer.num_blocks)))
        if processes.is_main:
            for name in (SHARDS, IN_FLIGHT):
                shutil.rmtree(folder / name, ignore_errors=True)
    summary = _saved_summary(folder)
    assert summary is not None
    return summary


class _Run:
    """One search of one process."""

    def __init__(
        self,
        questions: Sequence[Question],
        prompts: Sequence[Prompt],
        scorer: PathScorer,
        config: SearchConfig,
        info: dict[str, Any],
        folder: Path,
    ) -> None:
        self.questions, self.prompts, self.scorer, self.config = questions, prompts, scorer, config
        self.info, self.folder = info, folder
        self.shards = Shards(folder / SHARDS, ".parquet")
        lengths = [length_of(prompt) for prompt in prompts]
        self.bundles = cut_bundles(lengths, info["bundle"])
        self.weights = [sum(lengths[place] for place in places) for places in self.bundles]
        self.replayed = 0
        self._forget()

    def search(self, locks: Locks, processes: Processes, console: Console | None, log: TextIO | None) -> None:
        """Search what is missing; the main process then writes the set."""
        started = time.perf_counter()
        longest_first = sorted(range(len(self.bundles)), key=lambda number: -self.weights[number])
        with (
            stop_on_signals("paths", loud=processes.is_main) as stop,
            job_progress(
                "search", "questions", len(self.questions), weight=sum(self.weights), console=console, log=log
            ) as progress,
        ):

            def look(shards: Mapping[int, Path]) -> None:
                if processes.is_main:
                    self._look(shards, progress)

            def do(number: int) -> bytes:
                def show(done: float) -> None:
                    self._show(progress, number, done)
                    if stop.asked:
                        raise Interrupted("stopped in a bundle, whose journal has all that was scored")

                return self._search(number, show)

            look(self.shards.finished())
            before = self.tally.paths
            try:
                while True:
                    work_through(longest_first, do, self.shards, locks, stop, look)
                    if not processes.is_main or self._compact(progress):
                        break
            except Interrupted as error:
                look(self.shards.finished())
                raise Interrupted(
                    f"stopped; {self.tally.questions:,} of {len(self.questions):,} questions are finished and what was "
                    f"scored for others is saved in {self.folder}; go on with the same command and --resume."
                ) from error
        if processes.is_main:
            seconds, scored = time.perf_counter() - started, self.tally.paths - before - self.replayed
            summary = SearchSummary.of(self.tally, self.scorer.num_blocks, self.work, seconds=seconds, scored=scored)
            write_json_atomic(self.folder / SUMMARY, asdict(summary))
            track({"search": asdict(summary)})

    def _search(self, number: int, show: Callable[[float], None]) -> bytes:
        """The shard of one bundle."""
        places = self.bundles[number]
        before = self.scorer.work
        journal = self._journal(number)
        searches = search_bundle(
            [self.questions[place].id for place in places],
            [self.prompts[place] for place in places],
            self.scorer,
            self.config,
            show,
            journal,
        )
        self.replayed += journal.replayed
        rows = [
            _row(self.questions[place], self.prompts[place], search, self.info)
            for place, search in zip(places, searches, strict=True)
        ]
        return encode_shard(rows, {"tally": asdict(Tally.of(rows)), "work": asdict(self.scorer.work - before)})

    def _journal(self, number: int) -> Journal:
        return Journal(self.folder / IN_FLIGHT / f"{number:06d}.jsonl")

    def _look(self, shards: Mapping[int, Path], progress: JobProgress) -> None:
        """Count the shards that were finished since the last look, by any process."""
        for number, path in shards.items():
            if number not in self.counted and (content := self._read(path, progress)) is not None:
                self._count(number, content)
        self._show(progress)

    def _count(self, number: int, content: bytes) -> None:
        note = shard_note(content)
        self.tally += Tally(**note["tally"])
        self.work += Work(**note["work"])
        self.weight += self.weights[number]
        self.counted.add(number)
        self._journal(number).remove()

    def _forget(self) -> None:
        """Nothing is counted: neither what the rows say, nor what they cost, nor how much of the work they are."""
        self.tally, self.work, self.weight = Tally(), Work(), 0.0
        self.counted: set[int] = set()

    def _show(self, progress: JobProgress, in_flight: int | None = None, done: float = 0.0) -> None:
        """Progress: the shards counted, and `done` questions of the bundle in flight."""
        weight = self.weight
        if in_flight is not None:
            weight += self.weights[in_flight] * done / len(self.bundles[in_flight])
        progress.update(self.tally.questions + done, weight, {"fixed": self.tally.share_fixed})

    def _read(self, path: Path, progress: JobProgress) -> bytes | None:
        content = self.shards.read(path)
        if content is None:
            progress.warn(
                f"{path.name} was damaged and is set aside as {self.shards.set_aside_as(path)}; its questions are "
                f"searched again.",
                shard=path.name,
            )
        return content

    def _compact(self, progress: JobProgress) -> bool:
        """Join the shards to the one file that `datasets` reads; False when one was damaged, and nothing is written."""
        self._forget()
        (self.folder / DATA).parent.mkdir(exist_ok=True)
        try:
            write_tables(self.folder / DATA, self._chapters(progress))
        except _DamagedShard:
            return False
        self._show(progress)
        return True

    def _chapters(self, progress: JobProgress) -> Iterator[pa.Table]:
        """The rows of each chapter, in the order of the questions."""
        files = self.shards.finished()
        number = 0
        for start in range(0, len(self.questions), CHAPTER):
            count = min(CHAPTER, len(self.questions) - start)
            tables: list[pa.Table] = []
            places: list[int] = []
            while len(places) < count:
                content = self._read(files[number], progress) if number in files else None
                if content is None:
                    raise _DamagedShard
                self._count(number, content)
                tables.append(shard_table(content))
                places += self.bundles[number]
                number += 1
            order = sorted(range(count), key=places.__getitem__)
            yield pa.concat_tables(tables).take(order).combine_chunks()


class _DamagedShard(Exception):
    """A shard that was there a moment ago cannot be read."""


def cut_bundles(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The places of the questions of each bundle: similar lengths together, since those run as one batch.

    Bundles stay within a chapter of consecutive questions, so that the set is written a chapter at a time.
    """
    bundles = []
    for start in range(0, len(lengths), CHAPTER):
        chapter = range(start, min(start + CHAPTER, len(lengths)))
        order = sorted(chapter, key=lambda place: (lengths[place], place))
        bundles += [order[first : first + size] for first in range(0, len(order), size)]
    return bundles


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
        reference=prompt.reference or None,
        answer_index=prompt.answer if isinstance(prompt.answer, int) else None,
        answer=answer,
        level=question.level,
        score="reference" if prompt.mode in ("free", "self") else "choices",
        base_correct=paths[0].correct,
        decisions=choose_label(paths, info["rule"], info["price"]),
        paths=paths,
        simulations=search.simulations,
        seed=info["search"]["seed"],
        base_model=info["base_model"],
        base_revision=info["base_revision"],
        search=search_column(info),
    )


def _mode_of(questions: Sequence[Question], prompts: Sequence[Prompt]) -> str:
    """What an answer is, as a command names it: prompts of the mode contrast are worded as those of cloze."""
    with_others = any(
        question.choices is None and prompt.mode == "cloze" for question, prompt in zip(questions, prompts, strict=True)
    )
    return "contrast" if with_others else prompts[0].mode


def _check_questions(questions: Sequence[Question]) -> None:
    if not questions:
        raise DrLLMError("a search needs at least one question, but none was given; check the data and --limit.")
    seen: dict[str, int] = {}
    for question in questions:
        seen[question.id] = seen.get(question.id, 0) + 1
    name, times = max(seen.items(), key=lambda item: item[1])
    if times > 1:
        raise DrLLMError(f"question ids must be unique, but {name!r} occurs {times} times; rename the others.")


def _saved_summary(folder: Path) -> SearchSummary | None:
    try:
        return SearchSummary.from_json(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
