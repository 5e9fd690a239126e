"""Calls in the less usual forms: the same route as in the usual one, or refused before anything has changed."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_saving_and_loading import teach
from transformers import DynamicCache, LogitsProcessor, MixtralConfig, MixtralForCausalLM, StaticCache
from unrolled import VOCABULARY, tiny_model, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions, set_layer_budget

GREEDY = {"do_sample": False, "max_new_tokens": 6}


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny_model("llama")


@pytest.fixture
def model(base: Any) -> Any:
    """A transformers model with routers that tell prompts apart."""
    return attach(copy.deepcopy(base))


def attach(base: Any, **config: Any) -> Any:
    model = get_peft_model(base, DrLLMConfig(**config)).eval()
    teach(model)
    return model.get_base_model()


@torch.no_grad()
def decided(model: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
    model(*args, **kwargs)
    return last_decisions(model).tolist()


# What is prompt


def test_labels_by_position(model: Any) -> None:
    ids = tokens(2, 8)
    labels = torch.where(torch.arange(8) < 4, -100, ids)
    by_name = decided(model, ids, labels=labels)
    assert by_name != decided(model, ids)
    assert decided(model, ids, None, None, None, None, labels) == by_name


@pytest.mark.parametrize("static", [False, True])
def test_a_mask_longer_than_the_tokens(model: Any, static: bool) -> None:
    """Its end is for tokens to come, as for the base model."""
    ids, mask = tokens(2, 8, seed=2), torch.ones(2, 8, dtype=torch.long)
    mask[1, :3] = 0
    expected = decided(model, ids, attention_mask=mask)
    longer = torch.cat([mask, torch.zeros_like(mask)], dim=1)
    cache = {"past_key_values": StaticCache(config=model.config, max_cache_len=16)} if static else {}
    assert decided(model, ids, attention_mask=longer, **cache) == expected


def test_logits_of_the_callers_own_choice_in_generate(model: Any) -> None:
    ids = tokens(1, 8)
    expected = model.generate(ids, **GREEDY)
    routes = last_decisions(model).tolist()
    assert torch.equal(model.generate(ids, logits_to_keep=8, **GREEDY), expected)
    assert last_decisions(model).tolist() == routes


def test_generation_from_embeddings(model: Any) -> None:
    ids = tokens(2, 8)
    found = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **GREEDY)
    assert torch.equal(found, model.generate(ids, **GREEDY)[:, 8:])


def test_a_loop_of_ones_own_without_a_cache(model: Any) -> None:
    """Each call is what its tokens are: those of the last prompt with more behind them, or a new prompt."""
    first, second = tokens(1, 8, seed=2), tokens(1, 8, seed=5)
    expected = [decided(model, ids) for ids in (first, second)]
    assert expected[0] != expected[1]
    for ids, routes in zip((first, second), expected, strict=True):
        for added in range(3):
            longer = torch.cat([ids, tokens(1, added, seed=added)], dim=1)
            inputs = model.prepare_inputs_for_generation(longer, use_cache=False)
            assert decided(model, **inputs) == routes


class _Meanwhile(LogitsProcessor):
    def __init__(self, call: Callable[[torch.Tensor], Any]) -> None:
        self.call = call

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.call(input_ids)
        return scores


@torch.no_grad()
def test_other_calls_during_a_generation(model: Any) -> None:
    ids = tokens(1, 8)
    expected = model.generate(ids, **GREEDY)
    for call in (lambda so_far: model(tokens(3, 5, seed=9)), model, lambda so_far: model(so_far[:, :8])):
        meanwhile = [_Meanwhile(call)]
        assert torch.equal(model.generate(ids, logits_processor=meanwhile, **GREEDY), expected)
        with pytest.raises(DrLLMError, match="use a cache"):
            model.generate(ids, logits_processor=meanwhile, use_cache=False, **GREEDY)


@torch.no_grad()
def test_an_error_in_generate_says_nothing_about_the_next_call(model: Any) -> None:
    first, second = tokens(1, 8, seed=5), tokens(1, 8, seed=2)
    expected = decided(model, second)
    assert decided(model, first) != expected
    calls = []

    def fail(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("no image")

    hook = model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no image"):
        model.generate(first, use_cache=False, **GREEDY)
    hook.remove()
    assert decided(model, second, use_cache=False) == expected


def test_forced_rows_are_spread_over_copies_of_their_prompts_alone(model: Any) -> None:
    rows = [[1, 0, 1, 1, 2], [0, 1, 2, 1, 1]]
    with force_decisions(model, rows):
        model.generate(tokens(2, 7), num_return_sequences=2, do_sample=True, max_new_tokens=2)
        assert last_decisions(model).tolist() == [rows[0], rows[0], rows[1], rows[1]]
        with pytest.raises(DrLLMError, match="2 rows were given for a batch of 4"):
            model.generate(tokens(4, 7), **GREEDY)


def test_continuous_batching_is_refused_where_it_is_asked_for(model: Any) -> None:
    """And not in its thread, which would log it; the base model alone has it."""
    with pytest.raises(DrLLMError, match="generate, or drllm serve"):
        model.generate_batch(inputs=[[5, 6, 7]])
    routed = get_peft_model(tiny_model("llama"), DrLLMConfig())
    with pytest.raises(DrLLMError, match="generate, or drllm serve"):
        routed.init_continuous_batching()
    with routed.disable_adapter():
        assert routed.init_continuous_batching() is not None
    assert "init_continuous_batching" not in vars(routed.unload())


def test_pages_are_refused(model: Any) -> None:
    class PagedCache:
        pass

    with pytest.raises(DrLLMError, match="generate_batch"):
        model(tokens(1, 8), cache=PagedCache())


# Refusals leave the caller's cache as it was


def disabled(model: Any, arguments: dict[str, Any]) -> None:
    model.disable_adapters()
    try:
        model(**arguments)
    finally:
        model.enable_adapters()


def forced(model: Any, arguments: dict[str, Any]) -> None:
    with force_decisions(model, [1, 1, 1, 2, 1]):
        model(**arguments)


@pytest.mark.parametrize("refused", [pytest.param(disabled, marks=pytest.mark.transformers_adapters), forced])
@torch.no_grad()
def test_a_refused_call_writes_nothing(base: Any, refused: Callable[..., None]) -> None:
    path, ids = [1, 1, 1, 0, 1], tokens(1, 9)
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval().get_base_model()
    model._hf_peft_config_loaded = True  # as after transformers' own add_adapter
    cache = DynamicCache(config=model.config)
    with force_decisions(model, path):
        model(ids[:, :6], past_key_values=cache)
    with pytest.raises(DrLLMError, match="was filled along"):
        refused(model, {"input_ids": ids[:, 6:7], "past_key_values": cache})
    found = torch.cat([model(ids[:, place : place + 1], past_key_values=cache).logits for place in (6, 7, 8)], dim=1)
    expected = unrolled(base, path)(ids, use_cache=False).logits[:, 6:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_forced_decisions_on_a_cache_that_the_base_filled(base: Any, model: Any) -> None:
    ids, cache = tokens(1, 9), DynamicCache(config=base.config)
    base(ids[:, :6], past_key_values=cache)
    with force_decisions(model, [1, 1, 0, 1, 1]), pytest.raises(DrLLMError, match="was filled along"):
        model(ids[:, 6:7], past_key_values=cache)
    with force_decisions(model, [1] * 5):
        found = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(found, base(ids, use_cache=False).logits[:, 6:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 3])
@torch.no_grad()
def test_a_prompt_that_was_interrupted_is_not_continued(model: Any, blocks: int) -> None:
    """Neither where the configuration has made all cache layers, nor where they are made on first use."""

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    layer = model.model.layers[blocks].base_layer.mlp
    for cache in (DynamicCache(config=model.config), DynamicCache()):
        hook = layer.register_forward_pre_hook(interrupt)
        with force_decisions(model, [1] * 5):
            with pytest.raises(KeyboardInterrupt):
                model(tokens(1, 6), past_key_values=cache)
            hook.remove()
            with pytest.raises(DrLLMError, match="must hold a whole prompt"):
                model(tokens(1, 1), past_key_values=cache)


@torch.no_grad()
def test_a_path_over_the_budget_writes_nothing(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    set_layer_budget(model, 5)
    with force_decisions(model, [1, 1, 1, 1, 2]), pytest.raises(DrLLMError, match="allows 5 block passes"):
        model(tokens(1, 6), past_key_values=cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [0] * len(cache.layers)


# Training mode


@pytest.mark.parametrize("blocks", [None, [2], [0, 2]])
def test_a_cache_of_training_mode_is_not_continued(base: Any, blocks: list[int] | None) -> None:
    model = attach(copy.deepcopy(base), layers_to_transform=blocks).train()
    cache = model(tokens(1, 5)).past_key_values
    for mode in (model.train, model.eval):
        mode()
        with pytest.raises(DrLLMError, match="evaluation mode to be continued"):
            model(tokens(1, 2), past_key_values=cache)


def test_a_fresh_adapter_is_the_base_bit_for_bit_in_training_too(base: Any) -> None:
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig()).train()
    assert torch.equal(model(tokens(2, 8)).logits, copy.deepcopy(base).train()(tokens(2, 8)).logits)


def test_an_outcome_that_was_not_chosen_may_overflow(base: Any) -> None:
    """One pass stays below float16's largest number, two do not."""
    half = copy.deepcopy(base).half()
    with torch.no_grad():
        half.get_input_embeddings().weight[1] *= 40000 / half.get_input_embeddings().weight[1].abs().max()
        for block in half.model.layers:
            block.mlp.down_proj.weight.zero_()
            block.self_attn.o_proj.weight.zero_()
        half.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, output: output + 25000)
    model = get_peft_model(half, DrLLMConfig()).train()
    loss = model(torch.ones(1, 6, dtype=torch.long), labels=torch.ones(1, 6, dtype=torch.long)).loss
    assert torch.isfinite(loss)
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_router_logits_of_experts_in_training_are_refused() -> None:
    """Both passes of every block run there, whatever was chosen."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = attach(MixtralForCausalLM(config)).train()
    with pytest.raises(DrLLMError, match="output_router_logits"):
        model(tokens(2, 6), labels=tokens(2, 6), output_router_logits=True)


# Outputs and dtypes


@torch.no_grad()
def test_hidden_states_as_a_tuple(model: Any) -> None:
    ids = tokens(2, 7)
    with force_decisions(model, [0, 2, 1, 2, 1]):
        expected = model.model(ids, output_hidden_states=True, use_cache=False)
        last, hidden = model.model(ids, output_hidden_states=True, use_cache=False, return_dict=False)
    assert torch.equal(last, expected.last_hidden_state)
    assert len(hidden) == len(expected.hidden_states) == 6
    assert all(torch.equal(found, state) for found, state in zip(hidden, expected.hidden_states, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_mixed_rows_under_autocast(base: Any, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    paths, ids = [[1, 0, 2, 1, 1], [0, 1, 1, 2, 1]], tokens(2, 7)
    half = copy.deepcopy(base).to(dtype)
    expected = [unrolled(half, path) for path in paths]
    with torch.autocast("cpu", autocast) if autocast else nullcontext(), force_decisions(attach(half), paths):
        found = half(ids).logits.float()
        for row, alone in enumerate(expected):
            wanted = alone(ids[row : row + 1]).logits[0].float()
            assert (found[row] - wanted).norm() / wanted.norm() < 0.03
