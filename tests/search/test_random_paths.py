"""Random paths: what is drawn, that nothing but seed and question matters, and that a search takes them."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runner import ToyScorer, search

from drllm_adapter import DrLLMError
from drllm_adapter.search import SearchConfig
from drllm_adapter.search.random_paths import RandomPaths
from drllm_adapter.supervision import read_rows


def draw(blocks: int, config: SearchConfig, name: str = "q") -> list[tuple[int, ...]]:
    paths = RandomPaths(blocks, config, name)
    drawn = []
    while (path := paths.propose()) is not None:
        drawn.append(path)
        paths.report(0.5, False)
    assert [path.decisions for path in paths.paths] == drawn
    return drawn


@given(blocks=st.integers(1, 12), count=st.integers(0, 40), edits=st.integers(1, 15), seed=st.integers(0, 5))
def test_drawn_paths(blocks: int, count: int, edits: int, seed: int) -> None:
    config = SearchConfig(method="random", simulations=count, edits=edits, seed=seed)
    drawn = draw(blocks, config)
    assert drawn[0] == (1,) * blocks
    assert len(set(drawn)) == len(drawn) <= count + 1
    for path in drawn[1:]:
        assert 1 <= sum(decision != 1 for decision in path) <= max(1, min(edits, blocks - 1))
    assert drawn == draw(blocks, config)


def test_edits_are_fair() -> None:
    drawn = [path for n in range(300) for path in draw(10, SearchConfig(method="random", simulations=20), f"q{n}")[1:]]
    numbers = Counter(sum(decision != 1 for decision in path) for path in drawn)
    assert set(numbers) == {1, 2, 3, 4, 5, 6}
    # Few different paths have one edit, so some of these are drawn twice and left out.
    assert all(abs(numbers[count] / len(drawn) - 1 / 6) < 0.025 for count in range(2, 7))
    blocks = Counter(block for path in drawn for block, decision in enumerate(path) if decision != 1)
    assert max(blocks.values()) < 1.1 * min(blocks.values())
    skipped = sum(path.count(0) for path in drawn) / sum(path.count(0) + path.count(2) for path in drawn)
    assert skipped == pytest.approx(0.75, abs=0.02)


def test_a_search_by_random_paths(tmp_path: Path) -> None:
    config = SearchConfig(method="random", simulations=6, edits=2)
    search(tmp_path / "set", ToyScorer(), config=config)
    rows = read_rows(tmp_path / "set")
    for row in rows:
        assert [path.decisions for path in row.paths] == draw(5, config, row.id)
        prompt = row.to_prompt()
        assert (prompt.text, prompt.continuations) == (row.prompt, (" a", " b"))
        assert prompt.continuations[int(prompt.answer)].strip() == row.answer


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(DrLLMError, match="tree, random"):
        SearchConfig(method="luck")
