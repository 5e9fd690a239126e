"""Static paths - one path for all prompts - as the baseline that a router must beat at equal passes."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..decisions import EXECUTE, REPEAT, SKIP, Decisions
from .compare import ScoreLike, Share


@dataclass(frozen=True)
class StaticPath:
    """A path and how many questions are right when all follow it."""

    decisions: Decisions
    accuracy: Share


def static_paths(num_blocks: int, passes: int, limit: int, seed: int = 0) -> list[Decisions]:
    """All paths over `num_blocks` blocks with that many passes, or `limit` different ones drawn from them.

    Every path is equally likely to be drawn: first its number of repeats, in proportion to how many paths have it.
    None exist below 0 or above 2 x `num_blocks` passes.
    """
    # r repeats leave passes - 2 r blocks that execute; the others are skipped.
    repeats = [r for r in range(passes // 2 + 1) if passes - r <= num_blocks]
    counts = [math.comb(num_blocks, r) * math.comb(num_blocks - r, passes - 2 * r) for r in repeats]
    if sum(counts) <= limit:
        return list(_all_paths(num_blocks, passes))
    draw = random.Random(seed)
    found: dict[Decisions, None] = {}
    while len(found) < limit:
        twice = draw.choices(repeats, counts)[0]
        path = [REPEAT] * twice + [EXECUTE] * (passes - 2 * twice)
        path += [SKIP] * (num_blocks - len(path))
        draw.shuffle(path)
        found[tuple(path)] = None
    return list(found)


def _all_paths(num_blocks: int, passes: int) -> Iterator[Decisions]:
    """In ascending order; no dead ends, so deep models with few paths of that many passes are quick too."""
    if num_blocks == 0:
        yield ()
        return
    for decision in (SKIP, EXECUTE, REPEAT):
        if 0 <= passes - decision <= REPEAT * (num_blocks - 1):
            yield from ((decision, *rest) for rest in _all_paths(num_blocks - 1, passes - decision))


def score_static_paths(
    paths: Sequence[Decisions], questions: int, score: Callable[[Sequence[Decisions]], Sequence[ScoreLike]]
) -> list[StaticPath]:
    """The accuracy of each path; `score` is given one path for every question."""
    results = []
    for path in paths:
        scores = score([path] * questions)
        results.append(StaticPath(path, Share(sum(item.correct for item in scores), questions)))
    return results


def best_static_at(mean_passes: float, best: dict[int, float]) -> float:
    """The accuracy that static paths reach at a mean number of passes, from the best at each whole number.

    Between whole numbers two paths are mixed at random, which gives the straight line between their accuracies; any
    two whole numbers around the mean may be mixed, so this is the upper hull.
    """
    around = [
        (low, high)
        for low in best
        for high in best
        if low <= mean_passes <= high and (low < high or low == mean_passes)
    ]
    if not around:
        raise ValueError(f"static paths of fewer and of more than {mean_passes:.2f} passes are needed")
    return max(
        best[low] if low == high else best[low] + (best[high] - best[low]) * (mean_passes - low) / (high - low)
        for low, high in around
    )
