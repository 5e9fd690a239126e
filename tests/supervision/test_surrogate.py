"""What skips cost, predicted from a few paths of other prompts; and from which price on each is worth it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drllm_adapter.supervision.skip_sets import draw_skip_sets
from drllm_adapter.supervision.surrogate import Surrogate, Tried, critical_prices, nested_sets

CANDIDATES = 6


def costs(kind: int, skipped: np.ndarray) -> float:
    """Prompts of kind 0 can spare everything but block 0; those of kind 1 lose much at once and then little more."""
    count = skipped.sum()
    if kind == 0:
        return float(0.02 * count + 0.4 * skipped[0])
    return float(0.6 * (1 - 0.5**count))


def made(prompts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    kinds = np.arange(prompts) % 2
    features = generator.normal(scale=0.1, size=(prompts, 8)) + kinds[:, None] * 0.6
    return features, kinds


def test_paths_of_other_prompts_tell_what_one_can_spare() -> None:
    features, kinds = made(60, 0)
    generator = np.random.default_rng(1)
    whose = np.repeat(np.arange(40), 10)
    skipped = (generator.random((400, CANDIDATES)) < 0.4).astype(float)
    losses = np.array([costs(kinds[p], s) for p, s in zip(whose, skipped, strict=True)])
    surrogate = Surrogate(features[:40], Tried(whose, skipped, losses + generator.normal(scale=0.05, size=400)))
    asked = (generator.random((200, CANDIDATES)) < 0.4).astype(float)
    new = 40 + generator.integers(0, 20, 200)
    truth = np.array([costs(kinds[p], s) for p, s in zip(new, asked, strict=True)])
    error = surrogate.predict(features, new, asked) - truth
    assert (error**2).mean() < 0.15 * truth.var()
    nothing = surrogate.predict(features, new, np.zeros((200, CANDIDATES)))
    assert np.abs(nothing).max() < 1e-9

    losses, sets = nested_sets(surrogate, features[40:], CANDIDATES, 5)
    assert (sets.sum(axis=2) == np.arange(6)).all()
    assert (np.diff(sets, axis=1) >= 0).all()
    spares = kinds[40:] == 0
    assert not sets[spares, 4, 0].any()  # block 0 is what prompts of kind 0 cannot do without
    prices = critical_prices(losses, sets, 0.5)
    at = (prices < 0.06).sum(axis=1)
    assert at[spares].mean() > 4
    assert at[~spares].mean() < 1


@settings(max_examples=200)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.floats(0.005, 0.9), st.integers(0, 99))
def test_a_critical_price_is_where_a_block_begins_to_be_worth_leaving_out(
    losses: list[float], price: float, seed: int
) -> None:
    """At any price the blocks below it are the nested set at which loss + price x passes is least."""
    count = len(losses)
    order = np.random.default_rng(seed).permutation(count)
    sets = np.zeros((1, count + 1, count))
    for size in range(1, count + 1):
        sets[0, size, order[:size]] = 1
    loss = np.array([[0.0, *losses]])
    prices = critical_prices(loss, sets, never=2.0)
    worth = loss[0] - price * np.arange(count + 1)
    best = int(worth.argmin())
    if np.abs(np.delete(worth, best) - worth[best]).min() > 1e-6:
        assert ((prices[0] < price) == (sets[0, best] > 0)).all()


@given(st.permutations(range(12)), st.integers(2, 8), st.integers(0, 20), st.text(max_size=5))
def test_random_sets_leave_out_candidates_alone(order: list[int], count: int, seed: int, name: str) -> None:
    candidates = order[:count]
    paths = draw_skip_sets(candidates, 12, seed, name)
    assert paths == draw_skip_sets(candidates, 12, seed, name)
    assert len(set(paths)) == len(paths)
    skipped = [{block for block, times in enumerate(path) if times == 0} for path in paths]
    assert all(blocks and blocks <= set(candidates) for blocks in skipped)
    assert all(set(path) <= {0, 1} for path in paths)


def test_cheap_blocks_are_left_out_more_often() -> None:
    candidates = [7, 3, 5, 2, 6, 4, 1, 0]
    drawn = [path for name in range(60) for path in draw_skip_sets(candidates, 12, 0, str(name))]
    often = [sum(path[block] == 0 for path in drawn) for block in candidates]
    assert often[0] > 1.5 * often[-1]
    assert len({path for name in range(9) for path in draw_skip_sets(candidates, 12, 0, str(name))}) > 25
