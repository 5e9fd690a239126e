"""How long a search will take, from searching a few of its questions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..tasks import Prompt
from .bundle import PathScorer, Work, length_of, search_bundle
from .tree import SearchConfig

GROUPS, IN_A_GROUP, SIMULATIONS = 3, 8, 10
"""What is tried: groups of short, middling and long questions, questions in a group, simulations of each question."""


@dataclass(frozen=True)
class SearchEstimate:
    """What the search of all questions will cost by one process; measured on the `tried` ones.

    Attributes:
        paths: that will be scored at most.
        passes: block passes of these paths; `passes_run` of them will run, the others are shared.
        seconds: on this device, as busy as it was while this was measured.
    """

    questions: int
    tried: int
    paths: int
    passes: int
    passes_run: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.questions:,} questions: {self.paths:,} paths of {self.passes:,} block passes, of which "
            f"{self.passes_run:,} will run; about {_duration(self.seconds)} on this device, going by {self.tried} of "
            f"the questions."
        )


def estimate_search(
    prompts: Sequence[Prompt],
    scorer: PathScorer,
    config: SearchConfig,
    show: Callable[[float], None] = lambda done: None,
) -> SearchEstimate:
    """Search a few questions of short, middling and long prompts, and work out what all of them will take.

    Batches are smaller than those of the search itself, so it is a little faster than this says.

    Args:
        prompts: of all questions.
        show: told which share of the trial is done.
    """
    order = sorted(range(len(prompts)), key=lambda place: (length_of(prompts[place]), place))
    # The paper's early stop ends most searches before their last simulation; when, only the whole search shows.
    simulations = config.simulations if config.early_stop else min(SIMULATIONS, config.simulations)
    groups = min(GROUPS, len(order))
    seconds, tried, total = 0.0, 0, Work()
    scorer.begin([prompts[order[-1]]]).score([0], [(1,) * scorer.num_blocks])  # the first call pays for set-up
    for group in range(groups):
        third = order[group * len(order) // groups : (group + 1) * len(order) // groups]
        first = max(0, (len(third) - IN_A_GROUP) // 2)
        places = third[first : first + IN_A_GROUP]
        before, started = scorer.work, time.perf_counter()
        search_bundle(
            [str(place) for place in places],
            [prompts[place] for place in places],
            scorer,
            replace(config, simulations=simulations),
        )
        show((group + 1) / groups)
        taken, work = time.perf_counter() - started, scorer.work - before
        # The base model's own path runs whole, once a question; what the simulations add grows with their number.
        base = len(places) * scorer.num_blocks
        times = config.simulations / simulations if simulations else 0.0
        paths = len(places) + times * (work.paths - len(places))
        passes = base + times * (work.passes - base)
        run = base + times * (work.passes_run - base)
        scale = len(third) / len(places)
        total += Work(round(scale * paths), round(scale * passes), round(scale * run))
        seconds += scale * taken * run / work.passes_run
        tried += len(places)
    return SearchEstimate(len(prompts), tried, total.paths, total.passes, total.passes_run, seconds)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
