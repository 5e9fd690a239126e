"""Limits on what routers lose: which blocks a depth control leaves out, and where the bisection ends."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from test_compare import Outcome
from unrolled import tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, last_decisions
from drllm_adapter.adapter.policy import blend
from drllm_adapter.evaluation import HeldOut, hold_to_limits
from drllm_adapter.evaluation.bounds import IDENTITY, depth_control_of

GAPS = (3.0, -1.5, 1.0, -4.0, 0.5)
"""Logit of skip minus that of execute, at each block: as trained blocks 0, 2 and 4 are skipped."""
COSTS = (0.01, 0.04, 0.02, 0.3, 0.03)
"""What leaving out each block costs in agreement."""


@given(st.floats(-12, 12), st.floats(-12, 12))
def test_a_threshold_on_the_difference_of_logits(gap: float, threshold: float) -> None:
    if abs(gap - threshold) < 1e-2:
        return
    probabilities = torch.tensor([gap, 0.0, -torch.inf], dtype=torch.float64).softmax(-1)
    skip, execute, _ = blend(probabilities, depth_control_of(threshold)).tolist()
    assert (skip > execute) == (gap > threshold)


@pytest.fixture
def model() -> Any:
    model = get_peft_model(tiny_model("llama", len(GAPS)), DrLLMConfig(num_windows=2, router_width=4)).eval()
    with torch.no_grad():
        for block, gap in enumerate(GAPS):
            router = model.get_base_model().model.layers[block].drllm_router["default"]
            router.up.bias.copy_(torch.tensor([gap, 0.0, -30.0]))
    return model


def held(model: Any, questions: int = 20, accuracy: bool = False, **limits: float) -> HeldOut:
    """Every prompt loses the same, so that intervals have no width; or, in accuracy, nobody loses anything."""

    def score() -> list[Outcome]:
        model(torch.tensor([[5, 6, 7]]))
        path = tuple(last_decisions(model)[0].tolist())
        lost = 0.0 if accuracy else sum(cost for cost, taken in zip(COSTS, path, strict=True) if not taken)
        return [Outcome(True, 0.5, path, None if accuracy else 1 - lost, 0.0)] * questions

    base = [Outcome(True, 0.5, (1,) * len(GAPS), None if accuracy else 1.0, 0.0)] * questions
    return hold_to_limits(model, base, score, **limits)


def skipped(model: Any) -> set[int]:
    model(torch.tensor([[5, 6, 7]]))
    return {block for block, taken in enumerate(last_decisions(model)[0].tolist()) if not taken}


@pytest.mark.parametrize(
    ("max_loss", "left_out"),
    [(0.5, set()), (1.5, {0}), (3.5, {0, 2}), (6.5, {0, 2, 4}), (11.0, {0, 1, 2, 4}), (50.0, {0, 1, 2, 3, 4})],
)
def test_as_much_is_left_out_as_the_limit_allows(model: Any, max_loss: float, left_out: set[int]) -> None:
    found = held(model, max_loss=max_loss)
    assert skipped(model) == left_out
    assert found.loss == pytest.approx((sum(COSTS[block] for block in left_out),) * 3)
    assert found.mean_passes == len(GAPS) - len(left_out)
    assert found.as_trained_loss[0] == pytest.approx(0.06)
    assert found.is_identity == (not left_out)
    assert model.peft_config["default"].depth_control == found.depth_control
    assert str(found).endswith(".")
    if not left_out:
        assert found.depth_control == IDENTITY
        assert "every block executes: nothing is lost" in str(found)


@pytest.mark.parametrize(
    ("passes", "left_out"), [(5, {0, 2, 4}), (2, {0, 2, 4}), (1, {0, 1, 2, 4}), (1.9, {0, 1, 2, 4})]
)
def test_a_budget_of_mean_passes(model: Any, passes: float, left_out: set[int]) -> None:
    assert held(model, mean_passes=passes).mean_passes <= passes
    assert skipped(model) == left_out


def test_the_loss_goes_before_the_budget(model: Any) -> None:
    found = held(model, mean_passes=1, max_loss=3.5)
    assert skipped(model) == {0, 2}
    assert "a mean of 1 passes would lose more" in str(found)
    assert held(model, mean_passes=2, max_loss=11.0).mean_passes == 2


def test_a_few_questions_show_too_little(model: Any) -> None:
    """Of 20 right answers none is lost, which leaves the true loss anywhere up to 9 points."""
    assert held(model, accuracy=True, max_loss=1.0).is_identity
    assert not skipped(model)
    assert not held(model, accuracy=True, max_loss=10.0).is_identity
    assert not held(model, accuracy=True, questions=400, max_loss=1.0).is_identity


def test_without_limits_it_is_measured_and_left(model: Any) -> None:
    found = held(model)
    assert skipped(model) == {0, 2, 4}
    assert str(found) == (
        "on 20 prompts that were held out the routers lose 6.0 [6.0, 6.0] points of agreement at 2.00 of 5 passes as "
        "trained."
    )
    for limits in ({"max_loss": -1.0}, {"max_loss": 101.0}, {"mean_passes": 0.0}):
        with pytest.raises(DrLLMError, match=r"must be .* but .* was given"):
            held(model, **limits)
