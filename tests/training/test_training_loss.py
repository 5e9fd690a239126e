"""Loss, class weights and metrics against plain loops over the published formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drllm_adapter import DrLLMError
from drllm_adapter.training import effective_number_weights, focal_loss
from drllm_adapter.training.metrics import decision_metrics, static_decisions

logits = st.lists(st.tuples(*[st.floats(-8, 8)] * 3), min_size=1, max_size=12)


@given(logits=logits, gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), data=st.data())
def test_focal_loss_equals_a_plain_loop(
    logits: list[tuple[float, float, float]], gamma: float, data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(logits), max_size=len(logits)))
    weights = [0.3, 1.1, 1.6]
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        p = math.exp(row[label]) / sum(math.exp(value) for value in row)
        total -= weights[label] * (1 - p) ** gamma * math.log(p)
    loss = focal_loss(torch.tensor(logits, dtype=torch.float64), torch.tensor(labels), torch.tensor(weights), gamma)
    assert float(loss) == pytest.approx(total / len(labels), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_finite_for_a_sure_router(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0]] * 3, requires_grad=True)
    focal_loss(logits, torch.tensor([0, 1, 2]), torch.ones(3), gamma).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_gamma_two_forgives_the_easy() -> None:
    logits, label, even = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0]), torch.ones(3)
    p = float(logits.softmax(-1)[0, 0])
    assert float(focal_loss(logits, label, even, 2.0)) == pytest.approx(
        float(focal_loss(logits, label, even, 0.0)) * (1 - p) ** 2, rel=1e-5
    )


@given(counts=st.tuples(*[st.integers(0, 3000)] * 3), beta=st.sampled_from([0.0, 0.9, 0.99, 0.999, 0.9999]))
def test_class_weights_equal_the_formula(counts: tuple[int, int, int], beta: float) -> None:
    labels = torch.cat([torch.full((count,), value, dtype=torch.int8) for value, count in enumerate(counts)])
    if sum(count > 0 for count in counts) < 2:
        with pytest.raises(DrLLMError, match="at least two of skip, execute and repeat"):
            effective_number_weights(labels, beta)
        return
    raw = [(1 - beta) / (1 - beta**count) if count else 0.0 for count in counts]
    largest = 10 * min(value for value in raw if value)
    raw = [min(value, largest) for value in raw]
    scale = sum(count > 0 for count in counts) / sum(raw)
    assert effective_number_weights(labels, beta).tolist() == pytest.approx([scale * value for value in raw], rel=1e-5)


def test_class_weights_known_values() -> None:
    labels = torch.tensor([0] * 1000 + [1] * 100)
    # Effective numbers: (1 - 0.999^1000) / 0.001 = 632.3 and (1 - 0.999^100) / 0.001 = 95.21.
    skip, execute, repeat = effective_number_weights(labels).tolist()
    assert execute / skip == pytest.approx(632.3 / 95.21, rel=1e-3)
    assert repeat == 0
    assert skip + execute == pytest.approx(2)


def test_class_weights_stay_bounded() -> None:
    skip, execute, repeat = effective_number_weights(torch.tensor([0] * 5000 + [1] * 3000 + [2])).tolist()
    assert repeat == pytest.approx(10 * skip)
    assert skip < execute < 1.1 * skip


@given(data=st.data(), other=st.integers(0, 3))
def test_metrics_equal_counting(data: st.DataObject, other: int) -> None:
    rows, blocks = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    decisions = st.lists(st.integers(0, 2), min_size=rows * blocks, max_size=rows * blocks)
    flat_labels, flat_predictions = data.draw(decisions), data.draw(decisions)
    shape = (rows, blocks)
    labels = np.array(flat_labels, dtype=np.int8).reshape(shape)
    metrics = decision_metrics(labels, np.array(flat_predictions, dtype=np.int8).reshape(shape), other)
    pairs = list(zip(flat_labels, flat_predictions, strict=True))
    f1 = []
    for value, name in enumerate(("skip", "execute", "repeat")):
        hits, found, there = pairs.count((value, value)), flat_predictions.count(value), flat_labels.count(value)
        if found + there == 0:
            assert metrics[f"f1_{name}"] is None
            continue
        precision, recall = hits / found if found else 0, hits / there if there else 0
        f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
        assert metrics[f"f1_{name}"] == pytest.approx(f1[-1])
        if name != "execute":
            assert metrics[f"{name}_accuracy"] == (pytest.approx(recall) if there else None)
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    assert metrics["accuracy"] == pytest.approx(sum(label == found for label, found in pairs) / len(pairs))
    assert metrics["mean_passes"] == pytest.approx(sum(flat_predictions) / rows + other)


def test_static_decisions_take_the_commonest_and_cheapest() -> None:
    labels = np.array([[0, 1, 2], [1, 1, 2], [0, 2, 1], [1, 2, 2]], dtype=np.int8)
    assert static_decisions(labels).tolist() == [0, 1, 2]
