"""The tree search over layer paths of one question (Dr.LLM, section 3 and appendix): pure Python, knows no model.

A node is a vector of decisions; the root executes every block. Its children are one edit away: one position or two
consecutive positions of the path left out, or one block repeated. The search proposes paths and is told what came of
them, so whoever runs the model can run many searches side by side.
"""

import hashlib
import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

from ..decisions import EXECUTE, REPEAT, Decisions, ScoredPath, execute_all, passes, to_path
from ..errors import DrLLMError, check_range
from ..supervision.labels import LABEL_RULES

REWARDS = ("probability", "correct")
METHODS = ("tree", "random")


@dataclass(frozen=True)
class SearchConfig:
    """Constants of the search; the defaults are the paper's but for those that make the reward a probability.

    Attributes:
        simulations: of each question, beside the first look at the base model's own path.
        exploration: c of the UCB.
        length_penalty: lambda of the UCB, for a path of L blocks (paper: 3; here the probability needs less).
        random_child: chance of following a random child instead of the best one.
        max_skip: most consecutive positions that one edit leaves out.
        reward: "probability" of the right answer, or "correct": 1 for a right answer and 0 for a wrong one (paper).
        early_stop: stop when a wrong answer became right or a right path is at least 2 passes shorter than L (paper).
        method: "tree", or "random": paths of a few random edits, see `random_paths`; of the others only `simulations`,
            `edits` and `seed` are then used.
        edits: most blocks that a random path edits.
        seed: with the question's id, all that randomness depends on.

    Raises:
        DrLLMError: a value is of the wrong type or out of its range.
    """

    simulations: int = 50
    exploration: float = 1.8
    length_penalty: float = 1.0
    random_child: float = 0.1
    max_skip: int = 2
    reward: str = "probability"
    early_stop: bool = False
    method: str = "tree"
    edits: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("simulations", 0), ("max_skip", 0), ("edits", 1), ("seed", 0)):
            check_range(name, getattr(self, name), lowest, math.inf)
        for name, highest in (("exploration", math.inf), ("length_penalty", math.inf), ("random_child", 1)):
            check_range(name, getattr(self, name), 0, highest, whole=False)
        if self.reward not in REWARDS:
            raise DrLLMError(f"reward must be one of {', '.join(REWARDS)}, but {self.reward!r} was given; correct it.")
        if self.method not in METHODS:
            raise DrLLMError(f"method must be one of {', '.join(METHODS)}, but {self.method!r} was given; correct it.")

    @classmethod
    def for_rule(cls, rule: str, **changes: Any) -> "SearchConfig":
        """The constants that go with a label rule: the paper's search for "shortest", the defaults for most others."""
        return replace(cls(), **{**LABEL_RULES[rule].search, **changes})


@dataclass
class _Node:
    decisions: Decisions
    visits: int = 0
    value: float = 0.0
    children: list["_Node"] | None = field(default=None)


class PathSearch:
    """The search for one question: `propose` a path, `report` what came of it, until `propose` gives None.

    Args:
        num_blocks: L, the decisions in a path.
        config: the constants.
        question_id: randomness depends on this and the seed alone, so searches may be interleaved in any way.
    """

    def __init__(self, num_blocks: int, config: SearchConfig, question_id: str) -> None:
        self.num_blocks = num_blocks
        self.config = config
        self.simulations = 0
        self._scores: dict[Decisions, ScoredPath] = {}
        self._root = _Node(execute_all(num_blocks))
        self._trail: list[_Node] = []
        self._stopped = False
        digest = hashlib.sha256(f"{config.seed}:{question_id}".encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))

    @property
    def paths(self) -> list[ScoredPath]:
        """Every path scored so far, in the order tried; the first is the base model's."""
        return list(self._scores.values())

    def propose(self) -> Decisions | None:
        """The next path to score, never one scored before; None when the search is over.

        A simulation that ends on a path scored before reuses that score and goes by without a proposal.
        """
        assert not self._trail, "report() must follow every proposal"
        if not self._scores:
            self._trail = [self._root]
            return self._root.decisions
        while not self._stopped and self.simulations < self.config.simulations:
            self.simulations += 1
            trail = self._select()
            known = self._scores.get(trail[-1].decisions)
            if known is None:
                self._trail = trail
                return trail[-1].decisions
            self._back_up(trail, known)
        return None

    def report(
        self, probability: float, correct: bool, agreement: float | None = None, kl: float | None = None
    ) -> None:
        """What came of the path that was proposed last; a probability of NaN is worth nothing."""
        assert self._trail, "nothing was proposed"
        score = ScoredPath(self._trail[-1].decisions, probability, correct, agreement, kl)
        self._scores[score.decisions] = score
        self._back_up(self._trail, score)
        self._trail = []
        if self.config.early_stop and correct and len(self._scores) > 1:
            base_wrong = not next(iter(self._scores.values())).correct
            shorter = passes(score.decisions) <= self.num_blocks - 2
            self._stopped = base_wrong or shorter

    def _select(self) -> list[_Node]:
        """From the root to the node of this simulation; a node is expanded on its second visit."""
        trail = [self._root]
        while True:
            node = trail[-1]
            if node.children is None:
                if node.visits == 0:
                    return trail
                node.children = [_Node(decisions) for decisions in edits(node.decisions, self.config.max_skip)]
                # Equal bounds are frequent among children never visited: the first of a random order wins.
                self._random.shuffle(node.children)
            if not node.children:
                return trail
            if self._random.random() < self.config.random_child:
                trail.append(self._random.choice(node.children))
            else:
                trail.append(max(node.children, key=lambda child: self._upper_bound(child, node)))

    def _upper_bound(self, child: _Node, parent: _Node) -> float:
        """`Q/n + c sqrt(ln N / n) - lambda |path| / L`.

        A child never visited counts as visited once with its parent's mean. An infinite bound would make the search
        try all of about 3 L children of the root first, which is the whole budget of a model of 16 blocks or more.
        """
        mean = child.value / child.visits if child.visits else parent.value / parent.visits
        explored = math.sqrt(math.log(parent.visits) / max(1, child.visits))
        length = passes(child.decisions) / self.num_blocks
        return mean + self.config.exploration * explored - self.config.length_penalty * length

    def _back_up(self, trail: list[_Node], score: ScoredPath) -> None:
        reward = score.probability if self.config.reward == "probability" else float(score.correct)
        reward = 0.0 if math.isnan(reward) else reward
        for node in trail:
            node.visits += 1
            node.value += reward


def edits(decisions: Decisions, max_skip: int = 2) -> list[Decisions]:
    """The paths one edit away, each once: up to `max_skip` consecutive positions left out, or one block repeated.

    No path is empty, and a block runs twice at most: three classes, three labels.
    """
    path = to_path(decisions)
    found: dict[Decisions, None] = {}
    for length in range(1, max_skip + 1):
        for start in range(len(path) - length + 1):
            edited = list(decisions)
            for block in path[start : start + length]:
                edited[block] -= 1
            if any(edited):
                found[tuple(edited)] = None
    for block, times in enumerate(decisions):
        if times == EXECUTE:
            found[(*decisions[:block], REPEAT, *decisions[block + 1 :])] = None
    return list(found)
