"""Paths that are chosen on the way: at every block somebody decides from what enters it, for many walkers at once.

Walkers of one question that decided alike so far share one row of hidden states, and a block's first pass serves those
that execute it and those that repeat it. So what runs is the tree of the paths chosen, each pass once.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...adapter.calling import evaluating
from ...decisions import REPEAT, SKIP, Decisions
from .scorer import SharingSession

Decide = Callable[[int, Sequence[int], Sequence[Tensor], Sequence[Sequence[int]]], Sequence[Sequence[int]]]
"""`decide(block, places, hidden, walkers)`: the decisions of one block.

For each group i of walkers that are still together: `places[i]` is their prompt, `hidden[i]` `[tokens, width]` what
enters the block for the prompt's tokens, `walkers[i]` who they are. Gives the decision of each walker of each group.
"""


@torch.no_grad()  # not inference mode: what routers read goes into a gradient later
def walk(session: SharingSession, places: Sequence[int], decide: Decide) -> list[Decisions]:
    """Walk through all blocks; the hidden states at the ends stay with the session, so that scoring them runs no block.

    Args:
        places: the prompt of each walker.
        decide: see `Decide`; it is asked once a block, in the order of the blocks.

    Returns:
        The decisions of each walker.
    """
    with evaluating(session.scorer.blocks.model):
        return _walk(session, places, decide)


def _walk(session: SharingSession, places: Sequence[int], decide: Decide) -> list[Decisions]:
    taken: list[list[int]] = [[] for _ in places]
    by_place: defaultdict[int, list[int]] = defaultdict(list)
    for walker, place in enumerate(places):
        by_place[place].append(walker)
    groups = [(place, walkers, session.entering(place)) for place, walkers in by_place.items()]
    ran: list[int] = []
    for block in range(session.scorer.num_blocks):
        prompts = [hidden[: session.rows[place].prompt_length] for place, _, hidden in groups]
        there = [place for place, *_ in groups]
        chosen = decide(block, there, prompts, [walkers for _, walkers, _ in groups])
        split: list[dict[int, list[int]]] = []
        for (_, walkers, _), decisions in zip(groups, chosen, strict=True):
            parts: defaultdict[int, list[int]] = defaultdict(list)
            for walker, decision in zip(walkers, decisions, strict=True):
                parts[decision].append(walker)
                taken[walker].append(decision)
            split.append(parts)
        # What leaves the block after 0, 1 and 2 passes.
        passed: list[dict[int, Tensor]] = [{SKIP: hidden} for *_, hidden in groups]
        for times in range(1, REPEAT + 1):
            run = [index for index, parts in enumerate(split) if any(decision >= times for decision in parts)]
            entering = [passed[index][times - 1] for index in run]
            asked = [there[index] for index in run]
            for index, hidden in zip(run, session.run_pass(block, asked, entering), strict=True):
                passed[index][times] = hidden
            ran += asked
        groups = [
            (place, walkers, passed[index][decision])
            for index, place in enumerate(there)
            for decision, walkers in split[index].items()
        ]
    paths = [tuple(row) for row in taken]
    for place, walkers, hidden in groups:
        session.keep(place, paths[walkers[0]], hidden)
    session.count_passes([], ran)
    return paths
