"""A whole search against the published way: one question, one path, one `generate` call at a time."""

import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..adapter.layer import routed_layers
from ..decisions import Decisions
from ..models.loading import route_base
from ..scoring.references import add_references
from ..scoring.shared_prefix import GIGABYTE, SharingScorer
from ..search import SearchConfig, search_bundle
from ..tasks import Prompt, grade
from .models import share, unroll

GOALS = {"cloze": 8.0, "letter": 5.0}
"""Least ratio of each mode."""
SHARE_GOAL = 0.9
"""Least share of our time inside decoder blocks."""


@dataclass(frozen=True)
class SearchSpeed:
    """How fast the searches of some questions were, and how fast the published way is on the same paths.

    Attributes:
        paths: scored by ours; `sampled` of them by the published way as well, in turns.
        paths_per_second, published_paths_per_second: the speeds.
        ratio: of these speeds.
        spread: quartiles of that ratio over the rounds of the search, each against all of the published way.
        share_in_blocks, share_in_head: of our time, inside decoder blocks, and in norm, head and softmax.
        avoided: share of the block passes that did not have to run.
        padding: share of the slots in batches without a token.
        peak_memory: gigabytes, of the device or, on the CPU, of the process with both ways in it.
        goal, share_goal: least ratio and least share; None where there is none.
    """

    mode: str
    questions: int
    simulations: int
    paths: int
    sampled: int
    paths_per_second: float
    published_paths_per_second: float
    ratio: float
    spread: tuple[float, float]
    share_in_blocks: float
    share_in_head: float
    avoided: float
    padding: float
    peak_memory: float
    goal: float | None
    share_goal: float | None

    @property
    def met(self) -> bool:
        fast = self.goal is None or self.ratio >= self.goal
        return fast and (self.share_goal is None or self.share_in_blocks >= self.share_goal)


def bench_search(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    config: SearchConfig,
    bundle: int,
    memory: float,
    sample: int,
    console: Console,
) -> SearchSpeed:
    """Search every prompt, and in between score a sample of the same (prompt, path) pairs the published way.

    Args:
        model: a base model without an adapter.
        prompts: of one mode.
        bundle: prompts searched side by side.
        memory: gigabytes of hidden states that are kept.
        sample: pairs that are scored the published way as well, spread over the rounds.
    """
    scorer = SharingScorer(route_base(share(model)), tokenizer, memory=int(memory * GIGABYTE), batch_size=bundle)
    prompts = add_references(scorer.plain, prompts)
    order = sorted(prompts, key=scorer.length)
    bundles = [order[start : start + bundle] for start in range(0, len(order), bundle)]
    # Neither the first call of a kernel nor the check of the packing is what is measured.
    scorer.begin(bundles[-1][-1:]).score([0], [(1,) * scorer.num_blocks])
    published = _Published(model, tokenizer, sample / (len(bundles) * (config.simulations + 1)))
    published.time([(bundles[0][0], (1,) * scorer.num_blocks)])
    published.seconds, published.paths = 0.0, 0
    before = scorer.work
    rounds: list[tuple[float, int]] = []
    with _clocks(scorer) as clocks, Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"search, {prompts[0].mode}", total=len(prompts))
        for number, part in enumerate(bundles):
            timed = _TimedScorer(scorer, part)
            started = clocks.now()

            def after_round(done: float, timed: _TimedScorer = timed, number: int = number) -> None:
                nonlocal started
                rounds.append((clocks.now() - started, len(timed.last)))
                published.time(timed.last)
                bar.update(task, completed=number * bundle + done)
                started = clocks.now()

            search_bundle([prompt.text for prompt in part], part, timed, config, after_round)
    seconds, paths = sum(item[0] for item in rounds), sum(item[1] for item in rounds)
    work = scorer.work - before
    ours, theirs = paths / seconds, published.paths / published.seconds
    of_rounds = statistics.quantiles([count / taken / theirs for taken, count in rounds], n=4)
    return SearchSpeed(
        mode=prompts[0].mode,
        questions=len(prompts),
        simulations=config.simulations,
        paths=paths,
        sampled=published.paths,
        paths_per_second=ours,
        published_paths_per_second=theirs,
        ratio=ours / theirs,
        spread=(of_rounds[0], of_rounds[2]),
        share_in_blocks=clocks.blocks / seconds,
        share_in_head=clocks.head / seconds,
        avoided=work.avoided,
        padding=work.padding,
        peak_memory=_peak_memory(model),
        goal=GOALS.get(prompts[0].mode),
        share_goal=SHARE_GOAL if prompts[0].mode in GOALS else None,
    )


class _TimedScorer:
    """Hands everything to the scorer of one bundle and remembers which pairs the last round scored."""

    def __init__(self, scorer: SharingScorer, prompts: Sequence[Prompt]) -> None:
        self.scorer, self.prompts, self.num_blocks = scorer, prompts, scorer.num_blocks
        self.last: list[tuple[Prompt, Decisions]] = []

    @property
    def work(self) -> Any:
        return self.scorer.work

    def begin(self, prompts: Sequence[Prompt]) -> "_TimedScorer":
        self.session = self.scorer.begin(prompts)
        return self

    def score(self, places: Sequence[int], paths: Sequence[Decisions]) -> Any:
        self.last = [(self.prompts[place], path) for place, path in zip(places, paths, strict=True)]
        return self.session.score(places, paths)


class _Published:
    """Scores pairs one at a time: greedy decoding by the model whose layer list is the path, then the answer is judged.

    Making that model is not timed: the published code swaps a list of indices.
    """

    def __init__(self, model: Any, tokenizer: Any, per_round: float) -> None:
        self.model, self.tokenizer, self.per_round = model, tokenizer, per_round
        self.seconds, self.paths, self._due = 0.0, 0, 1.0
        self._random = random.Random(0)

    @torch.inference_mode()
    def time(self, pairs: Sequence[tuple[Prompt, Decisions]]) -> None:
        self._due += self.per_round
        count, self._due = int(self._due), self._due % 1
        for prompt, path in self._random.sample(list(pairs), min(count, len(pairs))):
            along = unroll(self.model, path)
            started = _now(self.model)
            inputs = self.tokenizer(prompt.text, add_special_tokens=not prompt.templated, return_tensors="pt")
            ids = inputs["input_ids"].to(self.model.device)
            output = along.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=prompt.max_new_tokens,
                pad_token_id=0,
            )
            text = self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            answer = prompt.answer if isinstance(prompt.answer, str) else prompt.continuations[prompt.answer]
            grade(prompt.grader, text, answer)
            self.seconds += _now(self.model) - started
            self.paths += 1


class _Clocks:
    """Seconds inside decoder blocks and inside norm and head."""

    def __init__(self, model: Any) -> None:
        self.model, self.blocks, self.head, self._entered = model, 0.0, 0.0, 0.0

    def now(self) -> float:
        return _now(self.model)

    def enter(self, *_: Any) -> None:
        self._entered = self.now()

    def leave(self, *_: Any) -> None:
        self.blocks += self.now() - self._entered


@contextmanager
def _clocks(scorer: SharingScorer) -> Iterator[_Clocks]:
    clocks = _Clocks(scorer.blocks.model)
    hooks = []
    for layer in routed_layers(scorer.blocks.model):
        hooks.append(layer.base_layer.register_forward_pre_hook(clocks.enter))
        hooks.append(layer.base_layer.register_forward_hook(clocks.leave))
    head = scorer.blocks.log_probabilities

    def timed(hidden: Any) -> Any:
        started = clocks.now()
        output = head(hidden)
        clocks.head += clocks.now() - started
        return output

    scorer.blocks.log_probabilities = timed  # type: ignore[method-assign]
    try:
        yield clocks
    finally:
        scorer.blocks.log_probabilities = head  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _peak_memory(model: Any) -> float:
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device) / GIGABYTE
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIGABYTE


def speed_table(results: Sequence[SearchSpeed]) -> Table:
    """The speeds for people."""
    table = Table("mode", *(result.mode for result in results), title="Search", title_justify="left")

    def goal(value: str, least: float | None, reached: float) -> str:
        return value if least is None else f"{value} (goal {least:g}: {'met' if reached >= least else 'missed'})"

    table.add_row("paths scored", *(f"{item.paths:,}" for item in results))
    table.add_row("paths a second", *(f"{item.paths_per_second:.1f}" for item in results))
    table.add_row("the published way", *(f"{item.published_paths_per_second:.2f}" for item in results))
    table.add_row("ratio", *(goal(f"{item.ratio:.1f}", item.goal, item.ratio) for item in results))
    table.add_row("quartiles", *(f"{item.spread[0]:.1f} to {item.spread[1]:.1f}" for item in results))
    table.add_row(
        "time inside blocks",
        *(goal(f"{item.share_in_blocks:.2f}", item.share_goal, item.share_in_blocks) for item in results),
    )
    table.add_row("time in the head", *(f"{item.share_in_head:.2f}" for item in results))
    table.add_row("block passes avoided", *(f"{100 * item.avoided:.1f} %" for item in results))
    table.add_row("padding", *(f"{100 * item.padding:.1f} %" for item in results))
    table.add_row("peak memory", *(f"{item.peak_memory:.1f} GB" for item in results))
    return table
