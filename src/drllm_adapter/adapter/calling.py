"""How a transformers model is called where versions differ or the obvious way is slow."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn


def last_position() -> Tensor:
    """What to pass as `logits_to_keep` for the logits of the last token alone.

    With the number 1 a model passes a slice to its head. A slice of a longer prompt is not contiguous, and for those a
    bfloat16 head takes 15 to 100 times as long on a CPU (torch 2.13), once for every row.
    """
    return torch.tensor([-1], device="cpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode inside the `with` block, afterwards in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def cache_keyword(model: nn.Module) -> str:
    """What a call of the model names its cache: `cache` since transformers 5.24, `past_key_values` before."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
