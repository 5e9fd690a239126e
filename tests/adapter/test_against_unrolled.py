"""Routed execution equals the unrolled model: logits, tokens and cache, per row, whatever the batch."""

import copy
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import DynamicCache
from unrolled import SIZES, VOCABULARY, tiny_model, unrolled

from drllm_adapter import DrLLMConfig, force_decisions, last_decisions
from drllm_adapter.adapter.calling import cache_keyword

BLOCKS = 5
# Two batch sizes of the base model differ by about as much.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@lru_cache
def base_and_routed(model_type: str) -> tuple[Any, Any]:
    base = tiny_model(model_type, BLOCKS)
    return base, get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()


@lru_cache(maxsize=256)
def truth(model_type: str, decisions: tuple[int, ...]) -> Any:
    return unrolled(base_and_routed(model_type)[0], list(decisions))


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], bool]:
    """Prompts of different lengths, decisions for each, and the side that is padded."""
    token = st.integers(1, VOCABULARY - 1)
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=14), min_size=1, max_size=4))
    decision = st.lists(st.integers(0, 2), min_size=BLOCKS, max_size=BLOCKS).filter(any)
    return prompts, [draw(decision) for _ in prompts], draw(st.booleans())


def padded(prompts: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    fill = [[0] * (width - len(prompt)) for prompt in prompts]
    ids = [f + p if left else p + f for f, p in zip(fill, prompts, strict=True)]
    mask = [
        [0] * len(f) + [1] * len(p) if left else [1] * len(p) + [0] * len(f) for f, p in zip(fill, prompts, strict=True)
    ]
    mask_tensor = torch.tensor(mask)
    return torch.tensor(ids), mask_tensor, (mask_tensor.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("model_type", SIZES)
@settings(max_examples=25)
@given(batch=batches())
@torch.no_grad()
def test_logits_and_cache_of_every_row(model_type: str, batch: tuple[Any, Any, bool]) -> None:
    prompts, decisions, left = batch
    routed = base_and_routed(model_type)[1]
    ids, mask, positions = padded(prompts, left)
    cache = DynamicCache(config=routed.config)
    with force_decisions(routed, decisions):
        logits = routed(ids, attention_mask=mask, position_ids=positions, **{cache_keyword(routed): cache}).logits
    assert last_decisions(routed).tolist() == decisions
    for row, (prompt, path) in enumerate(zip(prompts, decisions, strict=True)):
        model = truth(model_type, tuple(path))
        expected_cache = DynamicCache(config=model.config)
        expected = model(torch.tensor([prompt]), **{cache_keyword(model): expected_cache}).logits
        real = mask[row].bool()
        torch.testing.assert_close(logits[row, real], expected[0], **TOLERANCE)
        kept = [
            (layer.keys[where], layer.values[where])
            for block in range(BLOCKS)
            for number in range(path[block])
            for layer in [cache.layers[block].passes[number]]
            for where in [cache.layers[block].decisions.passes[number].indices.index(row)]
        ]
        assert len(kept) == len(expected_cache.layers)
        for (keys, values), layer in zip(kept, expected_cache.layers, strict=True):
            # A sliding layer keeps its last tokens only; padding may push some of them out on the right.
            window = min(keys.shape[-2], layer.keys.shape[-2])
            inside = real[-keys.shape[-2] :]
            if not left and keys.shape[-2] < len(real):
                continue
            torch.testing.assert_close(keys[:, inside][:, -window:], layer.keys[0][:, -window:], **TOLERANCE)
            torch.testing.assert_close(values[:, inside][:, -window:], layer.values[0][:, -window:], **TOLERANCE)


@pytest.mark.parametrize("model_type", SIZES)
@settings(max_examples=12)
@given(batch=batches())
@torch.no_grad()
def test_every_generated_token(model_type: str, batch: tuple[Any, Any, bool]) -> None:
    prompts, decisions, _ = batch
    routed = base_and_routed(model_type)[1]
    ids, mask, _ = padded(prompts, left=True)
    steps = 7
    arguments = {"attention_mask": mask, "max_new_tokens": steps, "do_sample": False}
    with force_decisions(routed, decisions):
        cached = routed.generate(ids, **arguments)[:, ids.shape[1] :]
        uncached = routed.generate(ids, use_cache=False, **arguments)[:, ids.shape[1] :]
        static = routed.generate(ids, cache_implementation="static", **arguments)[:, ids.shape[1] :]
    for row, (prompt, path) in enumerate(zip(prompts, decisions, strict=True)):
        model = truth(model_type, tuple(path))
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=steps, do_sample=False, use_cache=False)
        assert cached[row].tolist() == expected[0, len(prompt) :].tolist()
        assert static[row].tolist() == expected[0, len(prompt) :].tolist()
        assert uncached[row].tolist() == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("model_type", SIZES)
@torch.no_grad()
def test_sampling_draws_from_the_unrolled_model(model_type: str) -> None:
    decisions = [0, 2, 1, 0, 2]
    routed = base_and_routed(model_type)[1]
    model = truth(model_type, tuple(decisions))
    ids = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": True, "temperature": 2.0}
    torch.manual_seed(11)
    with force_decisions(routed, decisions):
        drawn = routed.generate(ids, **arguments)
    torch.manual_seed(11)
    expected = model.generate(ids, **arguments)
    assert drawn.tolist() == expected.tolist()
    assert len({tuple(row) for row in drawn.tolist()}) == 2


@pytest.mark.parametrize("model_type", SIZES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_each_attention_implementation(model_type: str, attention: str) -> None:
    decisions = [[0, 2, 0, 1, 2], [2, 1, 1, 0, 0]]
    base = tiny_model(model_type, BLOCKS, attn_implementation=attention)
    routed = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    prompts = [[5, 9, 3, 7, 7, 2, 8, 1, 30, 31], [8, 1, 6]]
    ids, mask, _ = padded(prompts, left=True)
    with force_decisions(routed, decisions):
        tokens = routed.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, ids.shape[1] :]
    for row, prompt in enumerate(prompts):
        expected = unrolled(base, decisions[row]).generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
        assert tokens[row].tolist() == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("model_type", SIZES)
@torch.no_grad()
def test_identity_is_bit_for_bit_the_base(model_type: str) -> None:
    base, routed = base_and_routed(model_type)
    ids, mask, _ = padded([[5, 9, 3, 7, 7, 2, 8], [8, 1, 6]], left=True)
    expected = base(ids, attention_mask=mask).logits
    tokens = base.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(routed(ids, attention_mask=mask).logits, expected)  # a fresh adapter
    assert last_decisions(routed).tolist() == [[1] * BLOCKS] * 2
    assert torch.equal(routed.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False), tokens)
    with force_decisions(routed, [1] * BLOCKS):
        assert torch.equal(routed(ids, attention_mask=mask).logits, expected)
    with force_decisions(routed, [2] * BLOCKS), routed.disable_adapter():
        assert torch.equal(routed(ids, attention_mask=mask).logits, expected)
        assert torch.equal(routed.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False), tokens)


@torch.no_grad()
def test_skipped_blocks_do_not_run_and_rows_pay_only_for_their_own() -> None:
    _base, routed = base_and_routed("llama")
    ids = torch.randint(1, VOCABULARY, (4, 6))
    rows_run: dict[int, list[int]] = {block: [] for block in range(BLOCKS)}
    handles = [
        layer.base_layer.mlp.register_forward_pre_hook(
            lambda _, args, block=block: rows_run[block].append(args[0].shape[0])
        )
        for block, layer in enumerate(routed.base_model.model.model.layers)
    ]
    try:
        with force_decisions(routed, [[0, 1, 2, 0, 1], [0, 1, 2, 1, 1], [0, 1, 1, 2, 1], [0, 1, 0, 0, 1]]):
            routed(ids)
    finally:
        for handle in handles:
            handle.remove()
    assert rows_run == {0: [], 1: [4], 2: [3, 2], 3: [2, 1], 4: [4]}
