"""Drafts by early exit, calls that were prepared and never made, and caches that are taken apart."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_peft_method import IDS, logits
from test_saving_and_loading import teach
from transformers import DynamicCache
from unrolled import tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from tiny import tiny_model as any_tiny_model

PATHS = [[1, 0, 2, 1, 1], [1, 1, 2, 0, 1], [1, 1, 1, 1, 1]]


def routed(architecture: str = "llama", **config: Any) -> Any:
    model = get_peft_model(tiny_model(architecture), DrLLMConfig(**config)).eval()
    teach(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("path", [[1] * 5, [2, 1, 0, 1, 1], None])
def test_self_speculation_drafts_with_the_first_blocks(path: list[int] | None) -> None:
    model = routed()
    ask = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS[:1])}
    with force_decisions(model, path) if path else force_decisions(model, [1, 1, 2, 1, 0]):
        expected = model.generate(IDS[:1], **ask)
        assert torch.equal(model.generate(IDS[:1], **ask, assistant_early_exit=2), expected)
    expected = model.generate(IDS[:1], **ask)
    decisions = last_decisions(model)
    assert torch.equal(model.generate(IDS[:1], **ask, assistant_early_exit=3), expected)
    assert torch.equal(last_decisions(model), decisions)
    assert model.config.num_hidden_layers == 5


def test_what_was_prepared_and_never_run_is_not_taken_for_another_call() -> None:
    model = routed()
    expected, decisions = logits(model), last_decisions(model)
    base = model.get_base_model()
    base.prepare_inputs_for_generation(
        IDS[:, :3], attention_mask=torch.zeros(len(IDS), 3, dtype=torch.long), is_first_iteration=True, use_cache=False
    )
    assert torch.equal(logits(model), expected)
    assert torch.equal(last_decisions(model), decisions)


def keep(layer: Any) -> Any:
    layer.keys, layer.values = layer.keys[..., :-1, :], layer.values[..., :-1, :]


@torch.no_grad()
def test_a_cache_that_is_taken_apart_gives_all_or_nothing() -> None:
    model, cache = routed(), DynamicCache()
    rows = IDS[:3]
    with force_decisions(model, PATHS):
        model(rows, past_key_values=cache)
    for block, layer in enumerate(cache.layers):
        executed = all(path[block] == 1 for path in PATHS)
        for name in ("keys", "values"):
            if executed:
                assert getattr(layer, name).shape[0] == 3
            else:
                with pytest.raises(DrLLMError, match="entry of its own"):
                    getattr(layer, name)
                with pytest.raises(DrLLMError, match="entry of its own"):
                    setattr(layer, name, torch.zeros(3, 2, 4, 8))
        with pytest.raises(DrLLMError, match="continued with the same router adapter"):
            layer.update(torch.zeros(3, 2, 1, 8), torch.zeros(3, 2, 1, 8))
    length = cache.get_seq_length()
    keep(cache.layers[0])
    assert cache.layers[0].passes[0].keys.shape[-2] == length - 1


@torch.no_grad()
def test_recurrent_states_that_are_taken_apart_give_all_or_nothing() -> None:
    model, cache = get_peft_model(any_tiny_model("mamba"), DrLLMConfig()).eval(), None
    with force_decisions(model, [1, 2, 0, 1]):
        cache = model(IDS[:2], use_cache=True).cache_params
    assert cache.layers[0].conv_states
    for block in (1, 2):
        for name in ("conv_states", "recurrent_states"):
            with pytest.raises(DrLLMError, match="entry of its own"):
                getattr(cache.layers[block], name)
