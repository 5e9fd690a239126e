"""The searches of a bundle of questions, advanced together, and all that they know of a model."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

from ..decisions import Decisions
from ..tasks import Prompt
from .journal import Journal, Told
from .random_paths import RandomPaths
from .tree import PathSearch, SearchConfig

AnySearch = PathSearch | RandomPaths


class ScoreOfPath(Protocol):
    """What a scorer says of one prompt on one path: `probability` is NaN where the model gave no finite numbers."""

    @property
    def probability(self) -> float: ...
    @property
    def correct(self) -> bool: ...
    @property
    def agreement(self) -> float | None: ...
    @property
    def kl(self) -> float | None: ...


class Prompted(Protocol):
    """Some prompts, ready to be scored along one path after another."""

    def score(self, places: Sequence[int], paths: Sequence[Decisions], /) -> Sequence[ScoreOfPath]:
        """One score for each pair: prompt `places[i]` along `paths[i]`."""
        ...


@dataclass(frozen=True)
class Work:
    """What scoring cost so far; adds up over processes.

    Attributes:
        paths: scored.
        passes: block passes of these paths, each question counting one for each.
        passes_run: those of them that ran, because no other path had shared them.
        tokens: that went through a block.
        slots: the same with the padding between them.
    """

    paths: int = 0
    passes: int = 0
    passes_run: int = 0
    tokens: int = 0
    slots: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Work") -> "Work":
        return Work(*(mine - its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @property
    def avoided(self) -> float:
        """Share of the block passes that did not have to run."""
        return 1 - self.passes_run / max(1, self.passes)

    @property
    def padding(self) -> float:
        """Share of the slots in batches that held no token."""
        return 1 - self.tokens / max(1, self.slots)


class PathScorer(Protocol):
    """Scores paths: all that the search knows of a model."""

    @property
    def num_blocks(self) -> int: ...
    @property
    def work(self) -> Work: ...
    def begin(self, prompts: Sequence[Prompt], /) -> Prompted: ...


def length_of(prompt: Prompt) -> int:
    """Characters of a prompt and its continuations: what questions are sorted by, so that a bundle's are alike."""
    return len(prompt.text) + sum(map(len, prompt.continuations))


def search_bundle(
    question_ids: Sequence[str],
    prompts: Sequence[Prompt],
    scorer: PathScorer,
    config: SearchConfig,
    show: Callable[[float], None] = lambda done: None,
    journal: Journal | None = None,
) -> list[AnySearch]:
    """Search several questions side by side: in each round every search proposes a path, and all are scored at once.

    Args:
        question_ids, prompts: equally many; `prompts[i]` asks question i.
        show: told after each round how many questions' worth is done.
        journal: keeps the scores of every round, and has those of an earlier run, which are not computed again.
    """
    method: type[AnySearch] = RandomPaths if config.method == "random" else PathSearch
    searches = [method(scorer.num_blocks, config, name) for name in question_ids]
    prompted = scorer.begin(prompts)
    kept = iter(()) if journal is None else journal.rounds()
    while True:
        proposals = [(place, path) for place, s in enumerate(searches) if (path := s.propose()) is not None]
        if not proposals:
            return searches
        told = next(kept, None)
        if told is None:
            scores = prompted.score([place for place, _ in proposals], [path for _, path in proposals])
            told = [Told(score.probability, score.correct, score.agreement, score.kl) for score in scores]
            if journal is not None:
                journal.write(told)
        for (place, _), item in zip(proposals, told, strict=True):
            searches[place].report(item.probability, item.correct, item.agreement, item.kl)
        show(len(searches) * max(search.simulations for search in searches) / max(1, config.simulations))
