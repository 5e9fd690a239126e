"""Random sets of blocks to leave out, of those that can be spared: the paths that a surrogate learns from."""

import hashlib
import math
import random
from collections.abc import Sequence

from ..decisions import EXECUTE, SKIP, Decisions

_COUNTS = (0, 1, 2, 3)
_MANY = (4, 5, 6, 7)
_LATE = 0.8
# Of the candidates, ranked by what leaving them out alone costs: one e times likelier than the fifth behind it.
_RANKS = 5.0


def draw_skip_sets(candidates: Sequence[int], num_blocks: int, seed: int, name: str) -> list[Decisions]:
    """About 14 different paths of a prompt, the same for the same arguments.

    Blocks of the last fifth of the depth are varied for each choice of earlier ones: all that came before is shared.

    Args:
        candidates: blocks, those first that cost least when left out alone.
        name: of the prompt; others get other paths.
    """
    digest = hashlib.sha256(f"skips:{seed}:{name}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    early = [block for block in candidates if block < _LATE * num_blocks]
    late = [block for block in candidates if block >= _LATE * num_blocks]
    paths: dict[Decisions, None] = {}
    for count in (*_COUNTS, generator.choice(_MANY)):
        before = _draw(early, count, generator)
        behind: list[set[int]] = [set()]
        if late:
            behind += [{late[0]}, _draw(late, generator.randint(1, len(late)), generator)]
        for after in behind:
            skipped = before | after
            paths[tuple(SKIP if block in skipped else EXECUTE for block in range(num_blocks))] = None
    paths.pop((EXECUTE,) * num_blocks, None)
    return list(paths)


def _draw(ranked: Sequence[int], count: int, generator: random.Random) -> set[int]:
    """`count` of the blocks, the first ones likelier."""
    left, drawn = list(ranked), set[int]()
    while left and len(drawn) < count:
        weights = [math.exp(-ranked.index(block) / _RANKS) for block in left]
        drawn.add(left.pop(left.index(generator.choices(left, weights)[0])))
    return drawn
