"""Prompts, and whether the library itself decides and answers so."""

import random
from contextlib import nullcontext
from typing import Any

import torch

from drllm_adapter import force_decisions, last_decisions
from drllm_adapter.decisions import Decisions

NEW = 12
"""Tokens that are generated for a prompt."""

Tokens = list[int]


def prompts(count: int, seed: int = 0) -> list[Tokens]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 70) for _ in range(draw.randrange(3, 30))] for _ in range(count)]


@torch.no_grad()
def decided(model: Any, asked: Tokens) -> Decisions:
    """What the library's routers decide."""
    model(torch.tensor([asked]))
    return tuple(last_decisions(model)[0].tolist())


@torch.no_grad()
def is_greedy(model: Any, decisions: Any, asked: Tokens, answer: Tokens) -> bool:
    """Whether the library's model finds no token of an answer less likely than another, along these decisions or as
    it is.

    Other kernels add in another order, so what differs by a thousandth is as likely; between tokens that are not it is
    usually a half.
    """
    with force_decisions(model, list(decisions)) if decisions is not None else nullcontext():
        logits = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
    return len(answer) == NEW and bool((logits.max(-1).values - logits[range(NEW), answer] < 1e-3).all())
