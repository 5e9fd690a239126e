"""The base model's own continuations of prompts: what a path is compared with where no answers are known."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch
from peft import PeftModel
from rich.console import Console

from ..errors import Interrupted
from ..jobs import ALONE, Locks, Processes, Shards, job_progress, stop_on_signals, work_through
from ..tasks import Prompt
from .continuations import as_base, pad_left
from .plain import Scorer, greedily

REFERENCES = "references"
BATCH = 32
"""Prompts of a batch, and of a piece of the job."""


def add_references(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    folder: Path | None = None,
    locks: Locks | None = None,
    processes: Processes = ALONE,
    console: Console | None = None,
    log: TextIO | None = None,
) -> list[Prompt]:
    """The prompts of the mode "self" with the base model's greedy continuations; all others as they are.

    A reference has at most `max_new_tokens` tokens and ends with the model's end token if that comes first. Penalties
    and sampling that a model's generation_config asks for are left out. Prompts of similar lengths run as one batch.

    Args:
        folder, locks: of a job, see `jobs.open_folder`: processes share the batches, and finished ones are kept in
            `folder`/`REFERENCES`. None keeps everything in memory.

    Raises:
        DrLLMError: a prompt with its continuation is longer than the model's positions; the disk is full.
        Interrupted: on SIGINT or SIGTERM, after the batch in flight.
    """
    open_ones = [place for place, prompt in enumerate(prompts) if prompt.mode == "self" and not prompt.reference]
    if not open_ones:
        return list(prompts)
    order = sorted(open_ones, key=lambda place: (len(scorer.encode(prompts[place]).prompt), place))
    pieces = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    tokens: dict[int, list[int]] = {}
    with job_progress(
        "references",
        "prompts",
        len(order),
        console=console if processes.is_main else None,
        log=log if processes.is_main else None,
    ) as progress:
        if folder is None or locks is None:
            for places in pieces:
                tokens.update(zip(places, _continue(scorer, [prompts[place] for place in places]), strict=True))
                progress.update(len(tokens))
        else:
            shards = Shards(folder / REFERENCES, ".json")
            with stop_on_signals("batch", loud=processes.is_main) as stop:

                def do(piece: int) -> bytes:
                    return json.dumps(_continue(scorer, [prompts[place] for place in pieces[piece]])).encode()

                def show(finished: Mapping[int, Path]) -> None:
                    progress.update(sum(len(pieces[piece]) for piece in finished))

                try:
                    while len(tokens) < len(order):
                        work_through(range(len(pieces)), do, shards, locks, stop, show)
                        contents = {piece: shards.read(path) for piece, path in shards.finished().items()}
                        for piece, content in contents.items():
                            if content is not None:
                                tokens.update(zip(pieces[piece], json.loads(content), strict=True))
                except Interrupted as error:
                    raise Interrupted(
                        f"stopped while the model continued the prompts; {progress.done:,.0f} of {len(order):,} are "
                        f"saved in {folder}; go on with the same command and --resume."
                    ) from error
    return [_with_reference(scorer, prompt, tokens.get(place)) for place, prompt in enumerate(prompts)]


def _with_reference(scorer: Scorer, prompt: Prompt, tokens: Sequence[int] | None) -> Prompt:
    if tokens is None:
        return prompt
    text = scorer.text(tokens)
    return replace(prompt, continuations=(text,), answer=text, reference=tuple(tokens))


@torch.inference_mode()
def _continue(scorer: Scorer, prompts: Sequence[Prompt]) -> list[list[int]]:
    inputs = pad_left([scorer.encode(prompt).prompt for prompt in prompts], scorer.padding, scorer.model.device)
    del inputs["position_ids"]
    base: Any = scorer.model.get_base_model() if isinstance(scorer.model, PeftModel) else scorer.model
    longest = max(prompt.max_new_tokens for prompt in prompts)
    with as_base(scorer.model), greedily(scorer.model, longest, scorer.padding) as config:
        output: torch.Tensor = base.generate(**inputs, generation_config=config)
    rows = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [_until_end(scorer, row[: prompt.max_new_tokens]) for row, prompt in zip(rows, prompts, strict=True)]


def _until_end(scorer: Scorer, tokens: list[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in scorer.end_tokens), len(tokens) - 1)
    return tokens[: end + 1]
