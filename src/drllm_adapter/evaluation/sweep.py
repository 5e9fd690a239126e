"""The metric against passes under every control there is at inference: depth control p, layer budget and price."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from ..adapter.layer import routed_layers
from ..adapter.steering import set_depth_control, set_layer_budget
from ..decisions import Outcome, passes
from ..errors import DrLLMError
from .compare import Share

DEPTH_CONTROLS = (-0.7, -0.6, -0.3, -0.1, 0.1)
PRICES = (-2.0, -1.0, 1.0, 2.0)
_BUDGETS = 4


@dataclass(frozen=True)
class SweepPoint:
    """What one setting of one control gives.

    Attributes:
        control: "as trained", "depth control", "layer budget" or "price".
        value: of the control; None as trained.
        metric: its mean with the interval.
        mean_passes: block passes a question.
    """

    control: str
    value: float | None
    metric: Share
    mean_passes: float

    def to_json(self) -> dict[str, Any]:
        return {
            "control": self.control,
            "value": self.value,
            "metric": self.metric.to_json(),
            "mean_passes": self.mean_passes,
        }


def sweep_table(points: Sequence[SweepPoint]) -> Table:
    """The points for people."""
    table = Table("control", "value", "mean passes", f"{points[0].metric.name}, %", title="Sweep", title_justify="left")
    for point in points:
        table.add_row(
            point.control, "" if point.value is None else f"{point.value:g}", f"{point.mean_passes:.2f}",
            str(point.metric),
        )  # fmt: skip
    return table


def sweep_controls(
    model: Any,
    routed: Sequence[Outcome],
    score: Callable[[], Sequence[Outcome]],
    depth_controls: Sequence[float] = DEPTH_CONTROLS,
    prices: Sequence[float] = PRICES,
) -> list[SweepPoint]:
    """The adapter as it is, then under each value of each control alone; the model is left as it was.

    Budgets lie between the fewest and the most passes that the router made, where they bind.

    Args:
        routed: outcomes of the adapter as it is.
        score: outcomes of the same questions under the controls that are set when it is called.
    """
    config = routed_layers(model)[0].active_config
    if config is None:
        raise DrLLMError("a router adapter must be active to be swept, but none is; call set_adapter.")
    depth, budget = config.depth_control, config.layer_budget
    points = [_point("as trained", None, routed)]
    try:
        for value in depth_controls:
            set_depth_control(model, value)
            points.append(_point("depth control", value, score()))
        set_depth_control(model, depth)
        made = [passes(item.decisions) for item in routed]
        for limit in sorted({round(value) for value in np.linspace(min(made), max(made), _BUDGETS + 2)[1:-1]}):
            set_layer_budget(model, limit)
            points.append(_point("layer budget", limit, score()))
        set_layer_budget(model, budget)
        for value in prices:
            with priced(model, value):
                points.append(_point("price", value, score()))
    finally:
        set_depth_control(model, depth)
        set_layer_budget(model, budget)
    return points


@contextmanager
def priced(model: Any, price: float) -> Iterator[None]:
    """Routers that see every block pass cost `price` more, in their logits; afterwards as before.

    The logits of skip, execute and repeat become z0, z1 - price, z2 - 2 price: where a router was trained on log-odds
    or values, a pass must now be worth so much more. Negative prices make passes cheaper.
    """
    layers = routed_layers(model)
    name = layers[0].active_router_adapter
    routers: list[Any] = [
        layer.drllm_router[name] for layer in layers if name is not None and name in layer.drllm_router
    ]
    before = [router.up.bias.detach().clone() for router in routers]
    try:
        with torch.no_grad():
            for router in routers:
                router.up.bias -= price * torch.arange(3, device=router.up.bias.device)
        yield
    finally:
        with torch.no_grad():
            for router, bias in zip(routers, before, strict=True):
                router.up.bias.copy_(bias)


def _point(control: str, value: float | None, scores: Sequence[Outcome]) -> SweepPoint:
    return SweepPoint(
        control, value, Share.of_outcomes(scores), sum(passes(item.decisions) for item in scores) / len(scores)
    )
