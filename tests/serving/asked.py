"""Prompts, and what the library itself answers to them."""

import random
from typing import Any

import torch

from drllm_adapter import force_decisions

NEW = 12
"""Tokens that are generated for a prompt."""

Tokens = list[int]


def prompts(count: int, seed: int = 0) -> list[Tokens]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 70) for _ in range(draw.randrange(3, 30))] for _ in range(count)]


@torch.no_grad()
def expected(model: Any, asked: Tokens, decisions: Any = None) -> Tokens:
    """What the library itself answers."""
    ids = torch.tensor([asked])
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    if decisions is None:
        return list(model.generate(ids, **options)[0, len(asked) :].tolist())
    with force_decisions(model, decisions):
        return list(model.generate(ids, **options)[0, len(asked) :].tolist())
