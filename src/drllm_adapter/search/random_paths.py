"""Random paths of a few edits: no search, but unbiased material for regressions on the effect of every decision.

A tree search tries what looked good on the same question, so the best of what it tried is partly the luckiest. Random
edits are independent of the scores; what is estimated from them over many questions has plain errors.
"""

import hashlib
import random

from ..decisions import EXECUTE, REPEAT, SKIP, Decisions, ScoredPath, execute_all
from .tree import SearchConfig

# Skips are what saves passes, so most edits are; repeats often enough to learn what they do.
_SKIPPED = 0.75


def random_path(num_blocks: int, edits: int, generator: random.Random) -> Decisions:
    """A path with 1 to `edits` edited blocks, each number equally likely, at most L - 1; three of four are skipped."""
    decisions = [EXECUTE] * num_blocks
    count = generator.randint(1, max(1, min(edits, num_blocks - 1)))
    for block in generator.sample(range(num_blocks), count):
        decisions[block] = SKIP if generator.random() < _SKIPPED else REPEAT
    return tuple(decisions)


def random_paths(num_blocks: int, count: int, edits: int, seed: int, name: str) -> list[Decisions]:
    """`count` random paths without those drawn twice and the base model's, in order; the same for the same arguments.

    In order, paths that begin alike follow one another, and what they share need not run again.

    Args:
        name: what the paths are for, such as a question's id: others get other paths.
    """
    digest = hashlib.sha256(f"random:{seed}:{name}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    drawn = {random_path(num_blocks, edits, generator) for _ in range(count)}
    return sorted(drawn - {execute_all(num_blocks)})


class RandomPaths:
    """Proposes the base model's path, then `random_paths`; the same interface as `PathSearch`.

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
        self._left = random_paths(num_blocks, config.simulations, config.edits, config.seed, question_id)[::-1]

    @property
    def paths(self) -> list[ScoredPath]:
        """Every path scored so far, in the order tried; the first is the base model's."""
        return list(self._scores.values())

    def propose(self) -> Decisions | None:
        """The next path to score, never one scored before; None when all are."""
        assert self._pending is None, "report() must follow every proposal"
        if not self._scores:
            self._pending = execute_all(self.num_blocks)
        elif self._left:
            self.simulations += 1
            self._pending = self._left.pop()
        return self._pending

    def report(
        self, probability: float, correct: bool, agreement: float | None = None, kl: float | None = None
    ) -> None:
        """What came of the path that was proposed last."""
        assert self._pending is not None, "nothing was proposed"
        self._scores[self._pending] = ScoredPath(self._pending, probability, correct, agreement, kl)
        self._pending = None
