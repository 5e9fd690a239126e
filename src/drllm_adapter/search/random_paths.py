"""Random paths of a few edits: no search, but unbiased material for regressions on the effect of every decision.

A tree search tries what looked good on the same question, so the best of what it tried is partly the luckiest. Random
edits are independent of the scores; what is estimated from them over many questions has plain errors.
"""

import hashlib
import random

from ..decisions import EXECUTE, REPEAT, SKIP, Decisions, execute_all
from .tree import ScoredPath, SearchConfig

# Skips are what saves passes, so most edits are; repeats often enough to learn what they do.
_SKIPPED = 0.75


def random_path(num_blocks: int, edits: int, generator: random.Random) -> Decisions:
    """A path with 1 to `edits` edited blocks, each number equally likely, at most L - 1; three of four are skipped."""
    decisions = [EXECUTE] * num_blocks
    count = generator.randint(1, max(1, min(edits, num_blocks - 1)))
    for block in generator.sample(range(num_blocks), count):
        decisions[block] = SKIP if generator.random() < _SKIPPED else REPEAT
    return tuple(decisions)


class RandomPaths:
    """Proposes the base model's path, then random ones; the same interface as `PathSearch`.

    Each is a `random_path`; what is drawn twice is scored once.

    Args:
        num_blocks: L.
        config: `simulations` is how many paths to draw, `edits` and `seed` are used as well.
        question_id: randomness depends on this and the seed alone.
    """

    def __init__(self, num_blocks: int, config: SearchConfig, question_id: str) -> None:
        self.num_blocks, self.config = num_blocks, config
        self.simulations = 0
        self._scores: dict[Decisions, ScoredPath] = {}
        self._pending: Decisions | None = None
        digest = hashlib.sha256(f"random:{config.seed}:{question_id}".encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))
        # Sorted: paths that begin alike follow one another, and what they share need not run again.
        drawn = {random_path(num_blocks, config.edits, self._random) for _ in range(config.simulations)}
        self._drawn = sorted(drawn - {execute_all(num_blocks)}, reverse=True)

    @property
    def paths(self) -> list[ScoredPath]:
        """Every path scored so far, in the order tried; the first is the base model's."""
        return list(self._scores.values())

    def propose(self) -> Decisions | None:
        """The next path to score, never one scored before; None when all are."""
        assert self._pending is None, "report() must follow every proposal"
        if not self._scores:
            self._pending = execute_all(self.num_blocks)
        elif self._drawn:
            self.simulations += 1
            self._pending = self._drawn.pop()
        return self._pending

    def report(self, probability: float, correct: bool) -> None:
        """What came of the path that was proposed last."""
        assert self._pending is not None, "nothing was proposed"
        self._scores[self._pending] = ScoredPath(self._pending, probability, correct)
        self._pending = None
