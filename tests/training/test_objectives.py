"""Regressing effects: the loss against a plain loop, and routers that learn effects which depend on what they read."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from stores import random_store

from drllm_adapter.supervision.effects import static_at
from drllm_adapter.training import EffectRegression, TrainingConfig, train_routers
from drllm_adapter.training.batches import Batch, BatchReader
from drllm_adapter.training.routers import fresh_weights, stacked_logits


@dataclasses.dataclass(frozen=True)
class Path:
    decisions: tuple[int, ...]
    probability: float
    correct: bool = False
    agreement: float | None = None
    kl: float | None = None


def probability(margin: float) -> float:
    return 1 / (1 + math.exp(-margin))


def test_the_loss_equals_a_plain_loop() -> None:
    questions = [
        [Path((1, 1, 1), 0.5), Path((0, 1, 2), 0.8), Path((2, 0, 1), 0.1)],
        [Path((1, 1, 1), 0.3), Path((0, 0, 1), 0.6), Path((1, 1, 0), math.nan)],
    ]
    regression = EffectRegression.of(questions, [0, 2], price=1.5)
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    total, count = 0.0, 0
    for row, paths in enumerate(questions):
        residuals = []
        for path in paths:
            if math.isnan(path.probability):
                continue
            value = math.log(path.probability / (1 - path.probability))
            for place, block in enumerate((0, 2)):
                z, decision = logits[row, place], path.decisions[block]
                value -= float(z[decision] - z[1]) / regression.sharpness + 1.5 * (decision - 1) / 3
            residuals.append(value)
        mean = sum(residuals) / len(residuals)
        total += sum((value - mean) ** 2 for value in residuals)
        count += len(residuals)
    batch = Batch(np.arange(2), torch.empty(0), torch.empty(0), torch.empty(0))
    assert float(regression(logits, batch)) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("price", [0.0, 0.7])
def test_routers_begin_as_the_best_static_path(price: float) -> None:
    effects = np.array([[-0.1, 0, 0.3], [-0.5, 0, -0.2], [0.2, 0, 0.1]])
    regression = EffectRegression.of([[Path((1, 1, 1), 0.5)]], [0, 1, 2], price)
    weights = regression.start(fresh_weights(3, 4, 8, torch.Generator()), torch.from_numpy(effects))
    logits = stacked_logits(weights, torch.randn(3, 2, 1, 4), torch.ones(2).long())
    assert logits.argmax(dim=-1).tolist() == [list(static_at(effects, price))] * 2
    assert regression.effects(logits)[0].numpy() == pytest.approx(effects, abs=1e-6)


def test_routers_learn_whose_block_can_be_skipped() -> None:
    """Half of the questions need block 0 alone, the other half block 1 alone; features say which."""
    random = np.random.default_rng(0)
    store = random_store(400, routers=2, width=4)
    side = random.integers(0, 2, 400)
    for row, used in enumerate(store.windows):
        store.means[row, :, :used, 0] = 2 * side[row] - 1
    store.labels[:] = np.where(side[:, None] == [0, 1], 0, 1)
    questions = []
    for row in range(400):
        start = random.normal()
        paths = random.integers(0, 3, (8, 2))
        margins = start - 1.0 * (paths[:, 1 - side[row]] == 0) + 0.3 * random.normal(size=8)
        questions.append(
            [Path(tuple(path), probability(value)) for path, value in zip(paths.tolist(), margins, strict=True)]
        )
    regression = EffectRegression.of(questions, [0, 1], price=0.6)
    average = torch.tensor([[-0.5, 0.0, 0.0]] * 2, dtype=torch.float64)
    config = TrainingConfig(epochs=20, learning_rate=3e-3)
    result = train_routers(store, config, router_width=8, effects=(regression, average))
    batch = next(BatchReader(store, torch.device("cpu"), memory=0).batches([np.arange(400)]))
    logits = stacked_logits(result.weights, batch.means, batch.windows)
    assert (logits.argmax(dim=-1).numpy() == store.labels).mean() > 0.97
    effects = regression.effects(logits)
    assert float(effects[side == 0, 0, 0].mean()) == pytest.approx(0.0, abs=0.15)
    assert float(effects[side == 0, 1, 0].mean()) == pytest.approx(-1.0, abs=0.15)
