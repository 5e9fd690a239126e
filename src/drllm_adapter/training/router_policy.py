"""Routers as a policy: what they read on the way along a path, which decisions they draw or prefer, and how sure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter.router import Windows, window_shares
from ..decisions import EXECUTE, REPEAT, SKIP
from .routers import Weights


@dataclass(frozen=True)
class Visit:
    """One router's look at everything that came by: n groups of walkers that had decided alike so far.

    Attributes:
        router: its place in the stack of weights.
        means: float32 [n, K, d], the windows' means.
        used: int64 [n], how many of the K windows hold tokens.
        walkers: int64 [m], everyone who came by.
        groups: int64 [m], the group of each.
        decisions: int64 [m], what each decided.
    """

    router: int
    means: Tensor
    used: Tensor
    walkers: Tensor
    groups: Tensor
    decisions: Tensor


def router_logits(weights: Mapping[str, Tensor], router: int, means: Tensor, used: Tensor) -> Tensor:
    """The logits [n, 3] of one router of the stack for `means` [n, K, d], as `Router` computes them."""
    hidden = F.gelu(F.linear(means, weights["down_weight"][router], weights["down_bias"][router]), approximate="tanh")
    pooled = torch.einsum("nkh,nk->nh", hidden, window_shares(used, means.shape[1]))
    return F.linear(pooled, weights["up_weight"][router], weights["up_bias"][router])


@dataclass
class RouterPolicy:
    """Decides for walkers block by block, see `scoring.shared_prefix.walk`; notes what it saw.

    Attributes:
        weights: the stack of R routers.
        layers: the block of each router, ascending; other blocks execute.
        num_windows: K.
        rms_norm: whether the states of each token are normalised before they are pooled.
        draws: [walkers, L] uniform numbers in [0, 1) that decide by lot, each decision with the router's probability;
            None takes the likeliest, a tie executes.
        visits: what the routers saw, in the order of the blocks.
    """

    weights: Weights
    layers: Sequence[int]
    num_windows: int
    rms_norm: bool = False
    draws: Tensor | None = None
    visits: list[Visit] = field(default_factory=list)
    _windows: dict[int, Windows] = field(default_factory=dict)

    def __call__(
        self, block: int, places: Sequence[int], hidden: Sequence[Tensor], walkers: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        if block not in self.layers:
            return [[EXECUTE] * len(group) for group in walkers]
        router = list(self.layers).index(block)
        windows = [self._cut(states) for states in hidden]
        means = torch.cat([cut.mean(states[None], self.rms_norm) for cut, states in zip(windows, hidden, strict=True)])
        used = torch.cat([cut.used for cut in windows])
        probabilities = router_logits(self.weights, router, means, used).softmax(dim=-1).cpu()
        if self.draws is None:
            # The first of equals wins.
            order = torch.tensor([EXECUTE, SKIP, REPEAT])
            best = order[probabilities[:, order].argmax(dim=-1)].tolist()
            return [[best[index]] * len(group) for index, group in enumerate(walkers)]
        members = torch.tensor([walker for group in walkers for walker in group])
        groups = torch.tensor([index for index, group in enumerate(walkers) for _ in group])
        bounds = probabilities.cumsum(dim=-1)[groups, :REPEAT]
        decisions = (self.draws[members, block, None] >= bounds).sum(dim=-1)
        self.visits.append(Visit(router, means, used, members, groups, decisions))
        chosen = iter(decisions.tolist())
        return [[next(chosen) for _ in group] for group in walkers]

    def _cut(self, states: Tensor) -> Windows:
        tokens = len(states)
        if tokens not in self._windows:
            prompt = torch.ones(1, tokens, dtype=torch.bool, device=states.device)
            self._windows[tokens] = Windows.cut(prompt, self.num_windows)
        return self._windows[tokens]
