"""Paths as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm_adapter import DrLLMError
from drllm_adapter.decisions import draw, from_edits, from_path, to_path

DECISIONS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@given(DECISIONS)
def test_a_path_is_read_as_it_is_drawn_and_block_by_block(decisions: list[int]) -> None:
    drawn = draw(decisions).rpartition("  (")[0]
    assert from_path(drawn, len(decisions)) == tuple(decisions)
    assert from_path(" ".join(map(str, to_path(decisions))), len(decisions)) == tuple(decisions)


@given(DECISIONS)
def test_edits_say_what_is_not_executed(decisions: list[int]) -> None:
    skipped, repeated = ([block for block, its in enumerate(decisions) if its == kind] for kind in (0, 2))
    assert from_edits(skipped, repeated, len(decisions)) == tuple(decisions)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0-9 5", "block 5 comes behind block 9"),
        ("0 1 1 1", "a third time"),
        ("0-2 0-2", "block 0 comes behind block 2"),
        ("0-12", "block 12"),
        ("0 to 3", "'to'"),
        ("3-", "'3-'"),
    ],
)
def test_what_is_no_path_is_refused(text: str, problem: str) -> None:
    with pytest.raises(DrLLMError, match=problem):
        from_path(text, 12)


@pytest.mark.parametrize(("skip", "repeat"), [([12], []), ([-1], []), ([3], [3]), ([2, 2], [])])
def test_edits_name_different_blocks_of_the_model(skip: list[int], repeat: list[int]) -> None:
    with pytest.raises(DrLLMError, match=r"from 0 to 11"):
        from_edits(skip, repeat, 12)
