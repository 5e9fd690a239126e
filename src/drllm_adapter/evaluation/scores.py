"""The scores that a comparison needs, in the base model and along the routers' paths: shared, kept and gone on with."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TextIO

from rich.console import Console
from torch import Tensor

from ..adapter.steering import set_layer_budget
from ..decisions import execute_all
from ..errors import Interrupted
from ..jobs import Locks, Processes, Shards, job_progress, stop_on_signals, work_through
from ..scoring.plain import Score, Scorer
from ..tasks import Prompt

SCORES = "scores"


def batches_of(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """The places of all prompts, `size` of similar lengths together."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].text))
    return [order[start : start + size] for start in range(0, len(order), size)]


def score_both(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    folder: Path,
    locks: Locks,
    processes: Processes,
    *,
    layer_budget: int | None,
    console: Console | None,
    log: TextIO | None,
) -> tuple[list[Score], list[Score]]:
    """Scores of all prompts in the base model and along the routers' paths, similar lengths together.

    The pieces of the job are the batches, first those of the base; finished ones lie in `folder`/`SCORES`.

    Args:
        folder, locks: of the job, see `jobs.open_folder`.
        processes: this one among those that share the work.
        layer_budget: of the routed model; the base's own path may cost more.

    Raises:
        DrLLMError: see `Scorer.score`; the disk is full.
        Interrupted: on SIGINT or SIGTERM, after the batch in flight.
    """
    batches = batches_of(prompts, scorer.batch_size)
    pieces = [(routed, places) for routed in (False, True) for places in batches]
    shards = Shards(folder / SCORES, ".json")

    def do(piece: int) -> bytes:
        routed, places = pieces[piece]
        set_layer_budget(scorer.model, layer_budget if routed else None)
        along = None if routed else [execute_all(scorer.num_blocks)] * len(places)
        scores = scorer.score([prompts[place] for place in places], along)
        return json.dumps([asdict(score) for score in scores]).encode()

    with (
        stop_on_signals("batch", loud=processes.is_main) as stop,
        job_progress(
            "evaluation",
            "answers",
            2 * len(prompts),
            weight=2 * sum(len(prompt.text) for prompt in prompts),
            console=console if processes.is_main else None,
            log=log if processes.is_main else None,
        ) as progress,
    ):

        def show(finished: Mapping[int, Path]) -> None:
            done = [place for piece in finished for place in pieces[piece][1]]
            progress.update(len(done), sum(len(prompts[place].text) for place in done))

        show(shards.finished())
        try:
            while True:
                work_through(range(len(pieces)), do, shards, locks, stop, show)
                contents = {piece: shards.read(path) for piece, path in sorted(shards.finished().items())}
                if None not in contents.values():
                    break
                progress.warn("a damaged file of scores was set aside; its questions are evaluated again.")
        except Interrupted as error:
            raise Interrupted(
                f"stopped; {progress.done:,.0f} of {2 * len(prompts):,} answers are saved in {folder}; go on with the "
                f"same command and --resume."
            ) from error
        set_layer_budget(scorer.model, layer_budget)
    found: dict[tuple[bool, int], Score] = {}
    for piece, content in contents.items():
        routed, places = pieces[piece]
        for place, item in zip(places, json.loads(content or b"[]"), strict=True):
            found[routed, place] = Score(**{**item, "decisions": tuple(item["decisions"])})
    in_base, along_routers = ([found[routed, place] for place in range(len(prompts))] for routed in (False, True))
    return in_base, along_routers


_KEPT_BYTES = 2 * 2**30


def scoring_all(
    scorer: Scorer, prompts: Sequence[Prompt], what: str, console: Console | None, log: TextIO | None
) -> Callable[[], list[Score]]:
    """Scores of all prompts along the routers' paths, under whatever is set when it is called.

    Args:
        what: the calls are the steps of; there is a bar for each.
    """
    batches = batches_of(prompts, scorer.batch_size)
    step = count(1)
    # What the base predicts is the same in every step; as much of it is kept as memory allows.
    kept: dict[int, list[Tensor | None]] = {}

    def bases(number: int, asked: Sequence[Prompt]) -> list[Tensor | None]:
        if number in kept:
            return kept[number]
        found = scorer.base_predictions(asked)
        held = sum(item.nbytes for batch in (*kept.values(), found) for item in batch if item is not None)
        if held <= _KEPT_BYTES:
            kept[number] = found
        return found

    def score() -> list[Score]:
        scores: dict[int, Score] = {}
        with job_progress(
            f"{what}, step {next(step)}", "questions", len(prompts), console=console, log=log
        ) as progress:
            progress.update(0)
            for number, places in enumerate(batches):
                asked = [prompts[place] for place in places]
                scores.update(zip(places, scorer.score(asked, bases=bases(number, asked)), strict=True))
                progress.update(len(scores))
        return [scores[place] for place in range(len(prompts))]

    return score
