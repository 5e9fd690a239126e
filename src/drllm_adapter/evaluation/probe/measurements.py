"""What a probe measures: how far each block left out alone, and more and more of the cheapest, moves the output."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...adapter.layer import routed_layers
from ...decisions import Decisions, execute_all
from ...errors import DrLLMError
from ...scoring.plain import Score, Scorer
from ...scoring.shared_prefix import SharingScorer, score_paths
from ...tasks import Prompt
from ..baselines import without

Floats = NDArray[np.float64]

LEAST_PROMPTS = 20
_FLOOR = 1e-4
_BUNDLE = 8  # prompts between two signs of progress; few prompts are equally long, so larger bundles gain little


@dataclass(frozen=True)
class Measurements:
    """What was measured of Q prompts and L blocks.

    Attributes:
        kinds: of each prompt.
        kl, agreement: `[Q, L]`, with each block left out alone, against the base; see `scoring.fidelity`.
        order: the blocks, those first whose leaving out costs the least on average (mean log KL).
        nested: `[Q, N + 1]`, agreement with the first 0 to N blocks of `order` left out together.
        states: `[L, Q, width]`, what enters each block on the base path: every token divided by its root mean square,
            then the mean over the prompt.
    """

    kinds: Sequence[str]
    kl: Floats
    agreement: Floats
    order: Sequence[int]
    nested: Floats
    states: NDArray[np.float32]

    @property
    def num_blocks(self) -> int:
        return int(self.kl.shape[1])

    @property
    def log_kl(self) -> Floats:
        """`[Q, L]`; below 0.0001 nats nothing can be told from rounding."""
        return np.log(np.maximum(self.kl, _FLOOR))

    def path(self, skips: int) -> Decisions:
        """The path that leaves out the first `skips` blocks of the order."""
        return without(self.order[:skips], self.num_blocks)


def measure(
    scorer: SharingScorer,
    prompts: Sequence[Prompt],
    kinds: Sequence[str],
    *,
    most_skips: int | None = None,
    show: Callable[[float], None] = lambda done: None,
) -> Measurements:
    """Run every prompt with each block left out alone, then with 1, 2, ... of the cheapest blocks left out together.

    Args:
        prompts: of the mode "self", with their references.
        kinds: of each prompt.
        most_skips: how many blocks are left out at most; None is a third of them.
        show: told the share of the work that is done.

    Raises:
        DrLLMError: too few prompts, or see `SharingScorer.begin`.
    """
    if len(prompts) < LEAST_PROMPTS:
        raise DrLLMError(
            f"a probe needs at least {LEAST_PROMPTS} prompts to say anything, but {len(prompts)} were given; give more "
            f"of them."
        )
    blocks, count = scorer.num_blocks, len(prompts)
    most = min(blocks - 1, max(1, blocks // 3) if most_skips is None else most_skips)
    # A path runs from its first difference on: half of the blocks when each is left out once.
    whole = 1 + blocks / 2 + most
    states = _states(scorer.plain, prompts, lambda done: show(done / whole))

    def run(paths: Sequence[Decisions], begin: float, share: float) -> list[list[Score]]:
        return score_paths(
            scorer, prompts, [paths] * count, bundle=_BUNDLE,
            show=lambda done: show((begin + share * done / count) / whole),
        )  # fmt: skip

    alone = run([without([block], blocks) for block in range(blocks)], 1, blocks / 2)
    kl = np.array([[_finite(score.kl) for score in of_prompt] for of_prompt in alone])
    agreement = np.array([[score.agreement for score in of_prompt] for of_prompt in alone], dtype=np.float64)
    order = np.log(np.maximum(kl, _FLOOR)).mean(axis=0).argsort(kind="stable").tolist()
    tried = [execute_all(blocks), *(without(order[:skips], blocks) for skips in range(1, most + 1))]
    together = run(tried, 1 + blocks / 2, most)
    nested = np.array([[score.agreement for score in of_prompt] for of_prompt in together], dtype=np.float64)
    return Measurements(list(kinds), kl, agreement, order, nested, states)


def _finite(kl: float | None) -> float:
    """A path along which the model breaks down says nothing: as far as a distribution over a vocabulary can be."""
    return 20.0 if kl is None or math.isnan(kl) or kl > 20 else kl


@torch.inference_mode()
def _states(scorer: Scorer, prompts: Sequence[Prompt], show: Callable[[float], None]) -> NDArray[np.float32]:
    """`[L, Q, width]`; prompts run one at a time, so there is no padding.

    Some tokens of real models, the first above all, are a thousand times larger than others and would be all that a
    mean over the prompt shows.
    """
    layers = routed_layers(scorer.model)
    found: list[list[torch.Tensor]] = [[] for _ in layers]

    def keep(index: int, layer: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        hidden = (args[0] if args else kwargs[layer.hidden_argument])[0].float()
        size = hidden.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)
        found[index].append((hidden / size).mean(dim=0).cpu())

    handles = [
        layer.register_forward_pre_hook(partial(keep, index), with_kwargs=True) for index, layer in enumerate(layers)
    ]
    try:
        for place, prompt in enumerate(prompts):
            # With one token to predict the prompt alone goes through the blocks, once.
            alone = replace(prompt, reference=prompt.reference[:1])
            scorer.log_likelihoods([alone], [execute_all(len(layers))])
            show((place + 1) / len(prompts))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([torch.stack(of_block) for of_block in found]).numpy()
