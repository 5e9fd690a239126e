"""The adapter's routers inside the engine: this library's own modules and rules, on the engine's hidden states."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from vllm.logger import init_logger

from ..adapter.policy import blend, choose, pass_limit
from ..adapter.router import Router, Windows
from ..adapter.weight_file import WEIGHTS, short_name
from ..decisions import EXECUTE, REPEAT
from .plan import Plan
from .settings import Settings

_log = init_logger(f"vllm.{__name__}")


class Routers:
    """The routers of all blocks.

    Args:
        settings: of an engine with an adapter, whose folder was checked when the engine's arguments were made.
        hidden_size: of the base.
    """

    def __init__(self, settings: Settings, hidden_size: int, device: torch.device) -> None:
        assert settings.adapter is not None
        self.settings = settings
        weights = {short_name(name): value for name, value in load_file(Path(settings.adapter) / WEIGHTS).items()}
        self._routers: dict[int, Router] = {}
        for block in settings.routed:
            prefix = f"{block}."
            # vLLM builds models in the dtype of the base; routers compute in float32 by promise.
            with torch.device("meta"):
                router = Router(hidden_size, settings.router_width)
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            router.load_state_dict({name: value.float() for name, value in own.items()}, assign=True)
            self._routers[block] = router.to(device)
        self._windows: tuple[Plan, list[Windows]] | None = None

    def decide(self, block: int, plan: Plan, hidden: Tensor) -> list[int]:
        """The decisions of the deciding requests, in their order.

        Args:
            hidden: `[tokens, width]`, what enters the block, of all requests of the step.
        """
        router = self._routers.get(block)
        if router is None:
            return [EXECUTE] * len(plan.deciding)
        windows = self._of_step(plan, hidden.device)
        means = torch.cat(
            [its.mean(hidden[plan.prompt_tokens(row)][None]) for row, its in zip(plan.deciding, windows, strict=True)]
        )
        probabilities = router(means, torch.cat([its.shares for its in windows])).softmax(-1)
        return [self._choose(block, plan, row, probabilities[place]) for place, row in enumerate(plan.deciding)]

    def _choose(self, block: int, plan: Plan, row: int, probabilities: Tensor) -> int:
        asked = plan.routes[row].asked
        blended: Sequence[float] = blend(probabilities, asked.depth_control).tolist()
        if blended[0] != blended[0]:
            # The request's own answer is not finite either; the others must not end with it.
            _log.error("The router of block %d gave NaN for a request; the block executes.", block)
            return EXECUTE
        passes = int(plan.decisions[row, :block].sum())
        limit = pass_limit(asked.layer_budget, passes, block, self.settings.routed, self.settings.num_blocks)
        if block not in self.settings.repeatable:
            limit = min(limit, REPEAT - 1)
        return choose(blended, limit)

    def _of_step(self, plan: Plan, device: torch.device) -> list[Windows]:
        if self._windows is None or self._windows[0] is not plan:
            prompts = [
                torch.ones(1, plan.routes[row].prompt_tokens, dtype=torch.bool, device=device) for row in plan.deciding
            ]
            self._windows = plan, [Windows.cut(prompt, self.settings.num_windows) for prompt in prompts]
        return self._windows[1]
