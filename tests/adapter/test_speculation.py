"""Lossless decoding against the base model's own `generate`, and drawn tokens against the base's exact distribution."""

import copy
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import DynamicCache, StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from unrolled import SIZES, VOCABULARY, tiny_model

from drllm_adapter import (
    DrLLMConfig,
    DrLLMError,
    force_decisions,
    last_decisions,
    last_speculation,
    set_depth_control,
    speculate,
)
from drllm_adapter.adapter.layer import routed_layers
from drllm_adapter.adapter.speculation.acceptance import accept
from drllm_adapter.adapter.speculation.draft import DraftLength

pytestmark = pytest.mark.filterwarnings("ignore")
BLOCKS = 5
ROUTE = [1, 0, 2, 1, 1]


@lru_cache
def base_and_routed(model_type: str, **changes: Any) -> tuple[Any, Any]:
    base = tiny_model(model_type, BLOCKS, **changes)
    return base, get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def drafts_of_any_length(seed: int) -> Iterator[None]:
    """Tiny random models accept too little for drafts to be worth while, so their length is left to chance."""
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DraftLength, "begins", lambda self, price: chance.random() < 0.9)
        patch.setattr(DraftLength, "goes_on", lambda self, sure, price: chance.random() < 0.7)
        yield


# Greedy: the base's tokens


@settings(max_examples=20)
@given(st.data())
def test_the_base_models_tokens_one_for_one(data: st.DataObject) -> None:
    """Any route, batch, padding, end and processors; windows are 6 tokens, so most rows outgrow them."""
    base, routed = base_and_routed(data.draw(st.sampled_from(list(SIZES))))
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    ids = tokens(rows, length, seed=data.draw(st.integers(0, 10**6)))
    padding = [data.draw(st.integers(0, length - 1)) if rows > 1 else 0 for _ in range(rows)]
    mask = (torch.arange(length) >= torch.tensor(padding)[:, None]).long()
    arguments: dict[str, Any] = {
        "attention_mask": mask,
        "max_new_tokens": data.draw(st.sampled_from([1, 2, 20, 64 - length])),
        "do_sample": False,
        **data.draw(st.sampled_from([{}, {"eos_token_id": [2, 3, 4, 5, 6], "pad_token_id": 0}])),
        **data.draw(st.sampled_from([{}, {"repetition_penalty": 1.3, "min_new_tokens": 6}])),
    }
    routes = st.lists(st.sampled_from([0, 1, 1, 2]), min_size=BLOCKS, max_size=BLOCKS)
    route = data.draw(st.one_of(routes, st.lists(routes, min_size=rows, max_size=rows)))
    expected = base.generate(ids, **arguments)
    with drafts_of_any_length(data.draw(st.integers(0, 10**6))), force_decisions(routed, route):
        found = routed.generate(ids, custom_generate=speculate, **arguments)
    assert found.tolist() == expected.tolist()


@torch.no_grad()
def test_routers_decide_by_the_prompt_while_all_blocks_execute() -> None:
    """Their route is that of the base's hidden states, and it stays theirs to show."""
    base, routed = base_and_routed("llama")
    ids = tokens(1, 8, seed=3)
    set_depth_control(routed, -1.0)  # skips everything
    try:
        found = routed.generate(ids, max_new_tokens=12, custom_generate=speculate)
        assert last_decisions(routed).tolist() == [[0] * BLOCKS]
    finally:
        set_depth_control(routed, -0.5)
    assert found.tolist() == base.generate(ids, max_new_tokens=12).tolist()
    done = last_speculation(routed)
    assert done.drafted > 0
    assert done.tokens == 12
    assert done.price < 0.5


@torch.no_grad()
def test_one_prefill_one_cache() -> None:
    """The prompt passes each block once, and no key or value is kept beside the base's but those of drafted tokens."""
    base, routed = base_and_routed("qwen2")
    ids = tokens(1, 9, seed=1)
    seen: list[list[int]] = [[] for _ in range(BLOCKS)]
    handles = [
        layer.base_layer.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(args[0].shape[1]))
        for layer, calls in zip(routed_layers(routed), seen, strict=True)
    ]
    cache = DynamicCache(config=base.config)
    try:
        with drafts_of_any_length(0), force_decisions(routed, ROUTE):
            made = routed.generate(ids, max_new_tokens=20, past_key_values=cache, custom_generate=speculate)
    finally:
        for handle in handles:
            handle.remove()
    done = last_speculation(routed)
    for block, calls in enumerate(seen):
        assert calls[0] == 9
        runs_drafts = done.draft_passes if ROUTE[block] else 0
        assert len(calls) == done.verifications + runs_drafts
    expected = DynamicCache(config=base.config)
    assert base.generate(ids, max_new_tokens=20, past_key_values=expected).tolist() == made.tolist()
    for ours, theirs in zip(cache.layers, expected.layers, strict=True):
        assert ours.get_seq_length() == theirs.get_seq_length() == made.shape[1] - 1
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_second_turn_goes_on_in_the_same_cache() -> None:
    base, routed = base_and_routed("llama")
    cache, plain = DynamicCache(config=base.config), DynamicCache(config=base.config)
    ids = tokens(1, 6, seed=2)
    ours, theirs = ids, ids
    with drafts_of_any_length(1):
        for turn in range(3):
            ours = routed.generate(ours, max_new_tokens=7, past_key_values=cache, custom_generate=speculate)
            theirs = base.generate(theirs, max_new_tokens=7, past_key_values=plain)
            assert ours.tolist() == theirs.tolist()
            more = tokens(1, 4, seed=10 + turn)
            ours, theirs = torch.cat([ours, more], dim=1), torch.cat([theirs, more], dim=1)
    routed_cache = DynamicCache(config=base.config)
    with force_decisions(routed, ROUTE):
        routed.generate(ids, max_new_tokens=2, past_key_values=routed_cache)
    with pytest.raises(DrLLMError, match="filled along a route"):
        routed.generate(tokens(1, 12), max_new_tokens=2, past_key_values=routed_cache, custom_generate=speculate)


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.steps: list[list[Any]] = []

    def put(self, value: torch.Tensor) -> None:
        self.steps.append(value.tolist())

    def end(self) -> None:
        self.steps.append(["end"])


@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_streamers_scores_and_several_sequences(rows: int) -> None:
    """A streamer is handed the same, step by step; scores and logits are the base's for as long as a row goes on."""
    base, routed = base_and_routed("gpt2")
    ids = tokens(rows, 7, seed=4)
    ends = {"eos_token_id": [2, 3, 4, 5], "pad_token_id": 0, "max_new_tokens": 25}
    outputs = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    ours, theirs = Collected(), Collected()
    expected = base.generate(ids, streamer=theirs, **ends, **outputs)
    with drafts_of_any_length(2), force_decisions(routed, ROUTE):
        found = routed.generate(ids, streamer=ours, custom_generate=speculate, **ends, **outputs)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert ours.steps == theirs.steps
    for name in ("scores", "logits"):
        assert len(found[name]) == len(expected[name])
        for step, (a, b) in enumerate(zip(found[name], expected[name], strict=True)):
            going = [
                row for row in range(rows) if step == 0 or expected.sequences[row, 6 + step] not in (0, 2, 3, 4, 5)
            ]
            torch.testing.assert_close(a[going], b[going], atol=1e-3, rtol=1e-3)
    assert (found.past_key_values is None) == (rows > 1)


class EndsAfter(StoppingCriteria):
    """Stops each row at a length of its own."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.lengths


@pytest.mark.parametrize("ends", [{}, {"eos_token_id": 1, "pad_token_id": 0}])
@torch.no_grad()
def test_stopping_criteria_end_rows_where_they_would(ends: dict[str, int]) -> None:
    """With an end-of-text token a row that was stopped is padded; without one all go on until the last is stopped."""
    base, routed = base_and_routed("mistral")
    ids = tokens(3, 5, seed=6)
    arguments = {"max_new_tokens": 20, "stopping_criteria": [EndsAfter([9, 17, 12])], **ends}
    expected = base.generate(ids, **arguments)
    assert expected.shape[1] == 17
    for seed in range(4):
        with drafts_of_any_length(seed), force_decisions(routed, ROUTE):
            assert routed.generate(ids, custom_generate=speculate, **arguments).tolist() == expected.tolist()


# Drawn tokens: the base's distribution


def improbable(counts: Counter[Any], probabilities: dict[Any, float]) -> bool:
    """Whether draws are not from a distribution, with a chance below one in a million of saying so wrongly.

    Pearson's statistic over what is expected 10 times or more and the rest; the bound is that of Laurent and Massart
    for chi-squared.
    """
    total = sum(counts.values())
    common = {key: p for key, p in probabilities.items() if p * total >= 10}
    cells = [(counts[key], p * total) for key, p in common.items()]
    rest = total - sum(expected for _, expected in cells)
    if rest >= 10:
        cells.append((total - sum(found for found, _ in cells), rest))
    statistic = sum((found - expected) ** 2 / expected for found, expected in cells)
    degrees, surprise = len(cells) - 1, math.log(1e6)
    return statistic > degrees + 2 * math.sqrt(degrees * surprise) + 2 * surprise


SMALL = {"vocab_size": 5, "pad_token_id": 0}


@lru_cache
def exact(warper: float) -> dict[tuple[int, ...], float]:
    """The probability of every three tokens that the base may draw after the prompt."""
    base = tiny_model("llama", BLOCKS, **SMALL)
    ids = torch.tensor([[1, 2, 3]])
    probabilities = {}
    for drawn in itertools.product(range(5), repeat=3):
        with torch.no_grad():
            logits = base(torch.cat([ids, torch.tensor([drawn])], dim=1)).logits[0, 2:5] / warper
        probabilities[drawn] = float(logits.softmax(-1)[range(3), list(drawn)].prod())
    return probabilities


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@torch.no_grad()
def test_drawn_tokens_have_the_bases_distribution(temperature: float) -> None:
    """Six thousand draws of three tokens, drafted along a route that disagrees; and the draft's own fail the test."""
    routed = get_peft_model(tiny_model("llama", BLOCKS, **SMALL), DrLLMConfig()).eval()
    arguments = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "max_new_tokens": 3}
    counts: Counter[tuple[int, ...]] = Counter()
    torch.manual_seed(0)
    with drafts_of_any_length(3), force_decisions(routed, [1, 0, 1, 0, 1]):
        for _ in range(6):
            made = routed.generate(
                torch.tensor([[1, 2, 3]]), num_return_sequences=1000, custom_generate=speculate, **arguments
            )
            counts.update(map(tuple, made[:, 3:].tolist()))
    done = last_speculation(routed)
    assert 0.1 < done.acceptance < 0.95
    assert not improbable(counts, exact(temperature))
    draft: Counter[tuple[int, ...]] = Counter()
    with force_decisions(routed, [1, 0, 1, 0, 1]):
        made = routed.generate(torch.tensor([[1, 2, 3]]), num_return_sequences=4000, **arguments)
        draft.update(map(tuple, made[:, 3:].tolist()))
    assert improbable(draft, exact(temperature))


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_the_rejection_rule_keeps_any_distribution(seed: int) -> None:
    """Whatever the draft offers, zeros and equal distributions included."""
    generator = torch.Generator().manual_seed(seed)
    whole, draft = (
        torch.randn(4, generator=generator).mul(2).masked_fill(torch.rand(4, generator=generator) < 0.3, -math.inf)
        for _ in range(2)
    )
    whole[0] = draft[1] = 0.0
    if seed % 5 == 0:
        draft = whole
    rows = 4000
    torch.manual_seed(seed)
    offered = draft.softmax(-1).expand(rows, -1)
    drafted = torch.multinomial(offered, 1)
    tokens, accepted = accept(drafted, offered[:, None], whole.expand(rows, 2, -1), do_sample=True)
    assert not improbable(Counter(tokens[:, 0].tolist()), dict(enumerate(whole.softmax(-1).tolist())))
    assert bool((tokens[accepted == 1, 0] == drafted[accepted == 1, 0]).all())


# How much is drafted


def test_drafting_stops_where_it_does_not_pay_and_comes_back() -> None:
    """Worth more than their price: many tokens. Never accepted: one in sixteen rounds, until they are again."""
    length = DraftLength(20)
    assert length.begins(0.5)
    for _ in range(50):
        length.observe([0.99] * 4, 4)
    assert length.goes_on([[0.99] * 10], 0.5)
    assert not length.goes_on([[0.99] * 20], 0.5)
    assert not length.goes_on([[0.9, 0.3]], 0.5)
    for _ in range(100):
        length.observe([0.99], 0)
    assert not length.goes_on([[0.99]], 0.5)
    begun = [length.begins(0.5) for _ in range(64)]
    assert 2 <= sum(begun) <= 4
    for _ in range(60):
        length.observe([0.99], 1)
    assert [length.begins(0.5) for _ in range(4)] == [True] * 4
    assert not length.begins(1.0)


@torch.no_grad()
def test_a_route_that_agrees_is_drafted_far_and_one_of_all_blocks_not_at_all() -> None:
    """Blocks that add nothing are skipped by the route: every drafted token stands."""
    base = tiny_model("llama", BLOCKS)
    for block in (1, 2, 3, 4):
        base.model.layers[block].self_attn.o_proj.weight.zero_()
        base.model.layers[block].mlp.down_proj.weight.zero_()
    routed = get_peft_model(base, DrLLMConfig()).eval()
    ids = tokens(2, 6, seed=8)
    with force_decisions(routed, [1, 0, 0, 0, 0]):
        routed.generate(ids, max_new_tokens=50, custom_generate=speculate)
    done = last_speculation(routed)
    assert done.acceptance == 1.0
    assert done.verifications < 25
    with force_decisions(routed, [2, 1, 1, 2, 1]):
        routed.generate(ids, max_new_tokens=50, custom_generate=speculate)
    assert last_speculation(routed).drafted == 0


# transformers' own way of drafting with the first blocks


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("route", [[1] * BLOCKS, [1, 0, 2, 1, 1], [0, 2, 1, 1, 0]])
@torch.no_grad()
def test_early_exit_drafts_for_a_routed_model_too(model_type: str, route: list[int]) -> None:
    """Candidates come of the first two blocks of the route, and the tokens are those of the whole route."""
    routed = base_and_routed(model_type)[1]
    ids = tokens(1, 6, seed=5)
    with force_decisions(routed, route):
        expected = routed.generate(ids, max_new_tokens=12)
        assert routed.generate(ids, max_new_tokens=12, assistant_early_exit=2).tolist() == expected.tolist()
        assert last_decisions(routed).tolist() == [route]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"use_cache": False}, "without a cache"),
        ({"cache_implementation": "static"}, "static cache"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"past_key_values": DynamicCache()}, "several rows"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    routed = base_and_routed("llama")[1]
    with pytest.raises(DrLLMError, match=named):
        routed.generate(tokens(2, 5), max_new_tokens=3, custom_generate=speculate, **arguments)


def test_a_disabled_adapter_and_a_model_without_one_are_refused() -> None:
    base, routed = base_and_routed("llama")
    with routed.disable_adapter(), pytest.raises(DrLLMError, match="none is active"):
        routed.generate(tokens(1, 5), max_new_tokens=3, custom_generate=speculate)
    with pytest.raises(DrLLMError, match="router adapter"):
        base.generate(tokens(1, 5), max_new_tokens=3, custom_generate=speculate)
    with pytest.raises(DrLLMError, match="nothing was generated losslessly"):
        last_speculation(get_peft_model(tiny_model("llama", 2), DrLLMConfig()))


@pytest.mark.gpu
@torch.no_grad()
def test_lossless_on_a_gpu() -> None:
    """Float32 without TF32: the base's tokens, in batches too."""
    for model_type in SIZES:
        base, routed = base_and_routed(model_type)
        base, routed = copy.deepcopy(base).cuda(), copy.deepcopy(routed).cuda()
        ids = tokens(3, 8, seed=9).cuda()
        expected = base.generate(ids, max_new_tokens=30)
        with drafts_of_any_length(5), force_decisions(routed, ROUTE):
            assert routed.generate(ids, max_new_tokens=30, custom_generate=speculate).tolist() == expected.tolist()
