"""Searches side by side against searches one at a time: whole trees, over tables of rewards."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from drllm_adapter.search import PathSearch, SearchConfig, Work, search_bundle
from drllm_adapter.tasks import Prompt

BLOCKS = 5


@dataclass
class Reward:
    probability: float
    correct: bool
    agreement: float | None = None
    kl: float | None = None


def reward(seed: int, name: str, path: tuple[int, ...]) -> Reward:
    """Some probabilities are not finite; many are equal."""
    digest = hashlib.sha256(f"{seed}:{name}:{path}".encode()).digest()
    return Reward(float("nan") if digest[0] < 10 else digest[1] % 8 / 7, digest[0] >= 10 and digest[2] < 90)


class Table:
    """Scores that depend on the prompt and the path alone."""

    num_blocks, work = BLOCKS, Work()

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def begin(self, prompts: Sequence[Prompt]) -> "Table":
        self.names = [prompt.text for prompt in prompts]
        return self

    def score(self, places: Sequence[int], paths: Sequence[tuple[int, ...]]) -> list[Reward]:
        return [reward(self.seed, self.names[place], path) for place, path in zip(places, paths, strict=True)]


def tree(node: Any) -> Any:
    """Everything in a tree: decisions, visits, values, and the children in their order."""
    children = None if node.children is None else [tree(child) for child in node.children]
    return node.decisions, node.visits, node.value, children


configs = st.builds(
    SearchConfig,
    simulations=st.integers(0, 40),
    exploration=st.sampled_from([0.5, 1.8]),
    length_penalty=st.sampled_from([0.0, 1.0, 3.0]),
    random_child=st.sampled_from([0.0, 0.1, 0.5]),
    max_skip=st.integers(0, 3),
    reward=st.sampled_from(["probability", "correct"]),
    early_stop=st.booleans(),
    seed=st.integers(0, 9),
)


@settings(max_examples=60)
@given(config=configs, seed=st.integers(0, 10**6), count=st.integers(1, 6), bundle=st.integers(1, 6))
def test_trees_are_those_of_one_search_at_a_time(config: SearchConfig, seed: int, count: int, bundle: int) -> None:
    names = [f"q{number}" for number in range(count)]
    alone = []
    for name in names:
        search = PathSearch(BLOCKS, config, name)
        while (path := search.propose()) is not None:
            found = reward(seed, name, path)
            search.report(found.probability, found.correct)
        alone.append(search)
    together: list[Any] = []
    for start in range(0, count, bundle):
        part = names[start : start + bundle]
        prompts = [Prompt(name, False, (" a", " b"), 0, "cloze", 1) for name in part]
        together += search_bundle(part, prompts, Table(seed), config)
    for ours, theirs in zip(together, alone, strict=True):
        assert tree(ours._root) == tree(theirs._root)
        assert ours.simulations == theirs.simulations
        assert [path.decisions for path in ours.paths] == [path.decisions for path in theirs.paths]
