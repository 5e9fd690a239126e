"""A step of refinement against the plain way: every path through the model's own forward, from the first block on."""

from collections.abc import Sequence
from typing import Any

import torch

from ..adapter.layer import observe_router_inputs, routed_layers
from ..adapter.steering import force_decisions
from ..decisions import Decisions
from ..models.loading import route_base
from ..scoring.continuations import pad_left
from ..scoring.plain import Scorer
from ..scoring.references import add_references
from ..scoring.shared_prefix import SharingScorer, SharingSession
from ..scoring.shared_prefix.walk import walk
from ..tasks import Prompt
from ..training import read_weights
from ..training.router_policy import RouterPolicy
from .timing import Comparison, compare

GOAL = 1.0


def bench_refine(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, generations: int, repetitions: int
) -> Comparison:
    """Sample `generations` paths for each prompt and score them, by routers that skip or repeat every tenth block.

    The plain way takes the same paths: all of a prompt as one batch, once for what the routers read on the way and
    once for the score.
    """
    routed = route_base(model)
    weights, layers = read_weights(routed)
    weights["up_bias"] = torch.tensor([0.05, 0.9, 0.05]).log().expand_as(weights["up_bias"])
    sharing, plain = SharingScorer(routed, tokenizer), Scorer(routed, tokenizer, batch_size=generations)
    asked = add_references(plain, prompts)
    bases = plain.base_predictions(asked)
    walkers = [place for place in range(len(asked)) for _ in range(generations)]
    draws = torch.rand(len(walkers), len(routed_layers(routed)), generator=torch.Generator().manual_seed(0))
    config: Any = routed.peft_config["default"]
    windows: int = config.num_windows

    paths: list[Decisions] = []

    def ours() -> None:
        session = sharing.begin(asked)
        assert isinstance(session, SharingSession)
        paths[:] = walk(session, walkers, RouterPolicy(weights, layers, windows, draws=draws))
        session.score(walkers, paths)

    ours()

    def other() -> None:
        for place, prompt in enumerate(asked):
            taken = paths[place * generations : (place + 1) * generations]
            inputs = pad_left([plain.encode(prompt).prompt] * generations, plain.padding, routed.device)
            with (
                torch.inference_mode(),
                force_decisions(routed, taken),
                observe_router_inputs(routed, lambda block, means, used: None),
            ):
                routed(**inputs)
            plain.score([prompt] * generations, taken, [bases[place]] * generations)

    setting = f"{len(asked)} prompts, {generations} paths each"
    return compare("refinement step", setting, ours, other, repetitions, GOAL)
