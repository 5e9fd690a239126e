"""Decisions: read from the prompt alone, taken once, steered by the four functions."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from test_against_unrolled import padded
from test_saving_and_loading import teach
from transformers import DynamicCache
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import (
    DrLLMConfig,
    DrLLMError,
    force_decisions,
    last_decisions,
    set_depth_control,
    set_layer_budget,
)
from drllm_adapter.adapter.calling import cache_keyword
from drllm_adapter.adapter.layer import observe_router_inputs, routed_layers
from drllm_adapter.adapter.policy import blend

BLOCKS = 5


def routed(**config: Any) -> Any:
    model = get_peft_model(tiny_model("llama"), DrLLMConfig(**config)).eval()
    teach(model)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return routed()


def decide(model: Any, ids: torch.Tensor, **arguments: Any) -> list[list[int]]:
    with torch.no_grad():
        model(ids, **arguments)
    return last_decisions(model).tolist()


prompts = st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=30), min_size=2, max_size=4)


@settings(max_examples=30)
@given(prompts=prompts, left=st.booleans())
def test_neither_neighbours_nor_padding_matter(model: Any, prompts: list[list[int]], left: bool) -> None:
    ids, mask, positions = padded(prompts, left)
    together = decide(model, ids, attention_mask=mask, position_ids=positions)
    assert together == [decide(model, torch.tensor([prompt]))[0] for prompt in prompts]


@settings(max_examples=30)
@given(prompt=st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=40), windows=st.integers(1, 9))
def test_windows_cover_every_token(prompt: list[int], windows: int) -> None:
    model = get_peft_model(tiny_model("llama", 1), DrLLMConfig(num_windows=windows)).eval()
    read: list[Any] = []
    with torch.no_grad(), observe_router_inputs(model, lambda *inputs: read.append(inputs)):
        model(torch.tensor([prompt]))
    _, means, used = read[0]
    states = model.get_input_embeddings()(torch.tensor(prompt)).detach()
    parts = torch.tensor_split(states, min(windows, len(prompt)))
    assert used.tolist() == [len(parts)]
    # Sizes differ by one token at most and the mean of all tokens can be put together again.
    sizes = [round(len(prompt) * (k + 1) / len(parts)) for k in range(len(parts))]
    assert sizes[-1] == len(prompt)
    bounds = [-(-len(prompt) * k // len(parts)) for k in range(len(parts) + 1)]
    for k in range(len(parts)):
        torch.testing.assert_close(means[0, k], states[bounds[k] : bounds[k + 1]].mean(0))


def test_logits_equal_a_plain_computation(model: Any) -> None:
    ids = torch.randint(1, VOCABULARY, (1, 16))
    read: dict[int, torch.Tensor] = {}
    with torch.no_grad(), observe_router_inputs(model, lambda block, means, used: read.update({block: means})):
        decisions = decide(model, ids)[0]
    for layer in routed_layers(model):
        router = layer.drllm_router["default"]
        scores = [
            router.up.weight
            @ torch.nn.functional.gelu(router.down.weight @ window + router.down.bias, approximate="tanh")
            + router.up.bias
            for window in read[layer.index][0]
        ]
        assert int(torch.stack(scores).mean(0).argmax()) == decisions[layer.index]


def test_the_answer_is_not_read(model: Any) -> None:
    prompt = torch.randint(1, VOCABULARY, (3, 11))
    answer, other = torch.randint(1, VOCABULARY, (2, 3, 9)).unbind()
    read: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    with observe_router_inputs(model, lambda *inputs: read.append(inputs)):
        alone = decide(model, prompt)
        for text in (answer, other):
            labels = torch.cat([torch.full_like(prompt, -100), text], dim=1)
            assert decide(model, torch.cat([prompt, text], dim=1), labels=labels) == alone
    # What routers read: the same windows as without an answer, and to the last bit the same whichever it is.
    for (block, means, used), before, after in zip(read[:BLOCKS], read[BLOCKS:], read[2 * BLOCKS :], strict=False):
        assert block == before[0] == after[0]
        assert used.tolist() == before[2].tolist() == after[2].tolist()
        torch.testing.assert_close(means, before[1], rtol=1e-3, atol=1e-4)
        assert torch.equal(before[1], after[1])
    assert len(read) == 3 * BLOCKS
    with torch.no_grad():
        model.generate(prompt, max_new_tokens=9, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert last_decisions(model).tolist() == alone
    with torch.no_grad():
        model.generate(
            prompt, max_new_tokens=9, do_sample=False, attention_mask=torch.ones_like(prompt), use_cache=False
        )
    assert last_decisions(model).tolist() == alone


@torch.no_grad()
def test_decoding_runs_no_router(model: Any) -> None:
    ids = torch.randint(1, VOCABULARY, (2, 8))
    calls: list[int] = []
    handles = [
        layer.drllm_router["default"].register_forward_hook(lambda *_: calls.append(1))
        for layer in routed_layers(model)
    ]
    model.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    assert len(calls) == BLOCKS


@torch.no_grad()
def test_a_block_whose_last_row_has_left_the_batch_keeps_its_length(model: Any) -> None:
    prompts, nexts = torch.randint(1, VOCABULARY, (2, 7)), torch.randint(1, VOCABULARY, (1, 1))
    path = [0] + [1] * (BLOCKS - 1)
    cache = DynamicCache(config=model.config)
    keyword = cache_keyword(model)
    with force_decisions(model, [[1] * BLOCKS, path]):
        model(prompts, **{keyword: cache})
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.get_seq_length() == 7
    found = model(nexts, **{keyword: cache}).logits
    with force_decisions(model, path):
        expected = model(torch.cat([prompts[1:], nexts], dim=1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_the_route_stays_with_the_cache(model: Any) -> None:
    first, second = torch.randint(1, VOCABULARY, (2, 1, 12)).unbind()
    paths = [decide(model, first), decide(model, second)]
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    model(first, **{cache_keyword(model): caches[0]})
    model(second, **{cache_keyword(model): caches[1]})
    token = torch.tensor([[7]])
    interleaved = model(token, **{cache_keyword(model): caches[0]}).logits
    with force_decisions(model, paths[0]):
        whole = model(torch.cat([first, token], dim=1)).logits[:, -1:]
    torch.testing.assert_close(interleaved, whole, rtol=1e-4, atol=1e-4)


PATHS = [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [2, 1, 0, 1, 2]]


def filled_cache(model: Any, ids: torch.Tensor, path: list[int] | list[list[int]]) -> dict[str, DynamicCache]:
    """The cache of a prompt along a path, by the name that the model gives it."""
    cached = {cache_keyword(model): DynamicCache(config=model.config)}
    with force_decisions(model, path):
        model(ids, **cached)
    return cached


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_a_cache_continues_with_its_own_number_of_rows(model: Any, path: list[int]) -> None:
    cached = filled_cache(model, torch.randint(1, VOCABULARY, (1, 9)), path)
    with pytest.raises(DrLLMError, match="holds 1 rows, but 2 rows"):
        model(torch.tensor([[7], [8]]), **cached)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("by_row", [False, True])
@torch.no_grad()
def test_forced_decisions_are_those_of_the_cache(model: Any, path: list[int], by_row: bool) -> None:
    cached = filled_cache(model, torch.randint(1, VOCABULARY, (2, 9)), path)
    token = torch.tensor([[7], [8]])
    for block in range(BLOCKS):
        other = [*path[:block], (path[block] + 1) % 3, *path[block + 1 :]]
        forced = [path, other] if by_row else other
        with pytest.raises(DrLLMError, match=f"block {block} has"), force_decisions(model, forced):
            model(token, **cached)
    cached = filled_cache(model, torch.randint(1, VOCABULARY, (2, 9)), path)
    with force_decisions(model, [path, path] if by_row else path):
        model(token, **cached)


@pytest.mark.parametrize("path", [*PATHS, [[1, 1, 1, 1, 1], [1, 2, 1, 0, 1]]])
@torch.no_grad()
def test_hidden_states_while_decoding_are_those_of_the_whole(model: Any, path: Any) -> None:
    ids = torch.randint(1, VOCABULARY, (2, 9))
    token = torch.tensor([[7], [8]])
    step = model(token, **filled_cache(model, ids, path), output_hidden_states=True).hidden_states
    with force_decisions(model, path):
        whole = model(torch.cat([ids, token], dim=1), output_hidden_states=True).hidden_states
    assert len(step) == BLOCKS + 1
    torch.testing.assert_close(step, tuple(states[:, -1:] for states in whole), rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(
    ids=st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=9, max_size=9), min_size=1, max_size=3),
    budget=st.integers(0, 2 * BLOCKS + 2),
    p=st.floats(-1, 1),
)
def test_the_budget_is_never_exceeded(ids: list[list[int]], budget: int, p: float) -> None:
    model = _steered()
    set_depth_control(model, p)
    set_layer_budget(model, budget)
    assert all(sum(row) <= budget for row in decide(model, torch.tensor(ids)))


_MODEL: list[Any] = []


def _steered() -> Any:
    if not _MODEL:
        _MODEL.append(routed())
    return _MODEL[0]


def with_fixed_logits(logits: tuple[float, float, float], **config: Any) -> Any:
    """A model whose routers answer the same whatever they read: skip, execute, repeat."""
    model = get_peft_model(tiny_model("llama"), DrLLMConfig(**config)).eval()
    with torch.no_grad():
        for layer in routed_layers(model):
            if "default" in layer.drllm_router:
                router = layer.drllm_router["default"]
                router.up.weight.zero_()
                router.up.bias.copy_(torch.tensor(logits))
    return model


@pytest.mark.parametrize(
    ("logits", "decision"),
    [
        ((0.0, 0.0, 0.0), 1),
        ((2.0, 2.0, 0.0), 1),
        ((0.0, 2.0, 2.0), 1),
        ((2.0, 0.0, 2.0), 0),
        ((2.0, 1.0, 0.0), 0),
        ((0.0, 1.0, 2.0), 2),
    ],
)
def test_a_tie_executes(logits: tuple[float, float, float], decision: int) -> None:
    assert decide(with_fixed_logits(logits), torch.ones(2, 7, dtype=torch.long)) == [[decision] * BLOCKS] * 2


@pytest.mark.parametrize(
    ("routed_blocks", "budget", "path"),
    [
        (None, 10, [2, 2, 2, 2, 2]),
        # Later blocks keep one pass each as long as the budget has one for each of them.
        (None, 7, [2, 2, 1, 1, 1]),
        (None, 5, [1, 1, 1, 1, 1]),
        # 3 of 5 passes: after the first block 4 x 3/5 = 2 whole passes are kept, after the next ones 1, 1, 0.
        (None, 3, [1, 1, 0, 1, 0]),
        (None, 2, [1, 0, 1, 0, 0]),
        (None, 0, [0, 0, 0, 0, 0]),
        # Blocks without a router always keep theirs.
        ([1, 3], 3, [1, 0, 1, 0, 1]),
        ([1, 3], 4, [1, 1, 1, 0, 1]),
        ([1, 3], 6, [1, 2, 1, 1, 1]),
        ([1, 3], 7, [1, 2, 1, 2, 1]),
    ],
)
def test_a_tight_budget_thins_out_the_whole_depth(routed_blocks: Any, budget: int, path: list[int]) -> None:
    """Routers that would repeat everywhere, worked out by hand: the last blocks are not simply cut off."""
    model = with_fixed_logits((0.0, 1.0, 2.0), layers_to_transform=routed_blocks, layer_budget=budget)
    assert decide(model, torch.ones(2, 7, dtype=torch.long)) == [path] * 2


def test_a_loose_budget_changes_nothing(model: Any) -> None:
    steered = copy.deepcopy(model)
    ids = torch.randint(1, VOCABULARY, (3, 11))
    free = decide(steered, ids)
    set_layer_budget(steered, 2 * BLOCKS)
    assert decide(steered, ids) == free
    set_layer_budget(steered, None)
    assert decide(steered, ids) == free


def test_depth_control_is_the_papers_p(model: Any) -> None:
    steered = copy.deepcopy(model)
    ids = torch.randint(1, VOCABULARY, (4, 11))
    trained = decide(steered, ids)
    for p, expected in ((-1, 0), (0.5, 1), (1, 2)):
        set_depth_control(steered, p)
        assert decide(steered, ids) == [[expected] * BLOCKS] * 4
    set_depth_control(steered, -0.5)
    assert decide(steered, ids) == trained


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (-1.0, [1, 0, 0]),
        (-0.75, [0.55, 0.3, 0.15]),
        (-0.5, [0.1, 0.6, 0.3]),
        (0.0, [0.05, 0.8, 0.15]),
        (0.5, [0, 1, 0]),
        (0.75, [0, 0.5, 0.5]),
        (1.0, [0, 0, 1]),
    ],
)
def test_depth_control_blends_probabilities(p: float, expected: list[float]) -> None:
    torch.testing.assert_close(blend(torch.tensor([0.1, 0.6, 0.3]), p), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("value", [-1.01, 1.5, "0", None, True, float("nan")])
def test_wrong_depth_control_is_refused(model: Any, value: Any) -> None:
    with pytest.raises(DrLLMError, match="depth_control"):
        set_depth_control(model, value)


@pytest.mark.parametrize("value", [-1, 2.0, "3", True])
def test_wrong_budget_is_refused(model: Any, value: Any) -> None:
    with pytest.raises(DrLLMError, match="layer_budget"):
        set_layer_budget(model, value)


@pytest.mark.parametrize(
    "decisions",
    [
        [1] * 4,
        [1] * 6,
        [1, 1, 1, 1, 3],
        [1, 1, 1, 1, -1],
        [1.0] * 5,
        torch.ones(5),
        torch.ones(5, dtype=torch.bool),
        torch.ones(1, 1, 5, dtype=torch.int8),
        [],
        "11111",
        [[1] * 5, [1] * 4],
    ],
)
def test_wrong_decisions_are_refused(model: Any, decisions: Any) -> None:
    with pytest.raises(DrLLMError, match="decisions"), force_decisions(model, decisions):
        pass


def test_forced_decisions_for_another_batch_are_refused(model: Any) -> None:
    with pytest.raises(DrLLMError, match="batch of 2"), force_decisions(model, [[1] * 5] * 3):
        model(torch.ones(2, 4, dtype=torch.long))
    assert decide(model, torch.ones(2, 4, dtype=torch.long))  # and the model is as it was


def test_blocks_without_a_router_execute() -> None:
    model = routed(layers_to_transform=[1, 3])
    set_depth_control(model, -1)
    assert decide(model, torch.randint(1, VOCABULARY, (2, 9))) == [[1, 0, 1, 0, 1]] * 2
    with pytest.raises(DrLLMError, match="at least 3"):
        set_layer_budget(model, 2)


@torch.no_grad()
def test_no_block_at_all() -> None:
    """All blocks skipped: the head reads the embeddings, and generation still counts its tokens."""
    model = routed()
    base = model.get_base_model()
    ids = torch.randint(1, VOCABULARY, (2, 6))
    with force_decisions(model, [0] * BLOCKS):
        logits = model(ids).logits
        tokens = model.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
    expected = base.lm_head(base.model.norm(base.model.embed_tokens(tokens)))
    torch.testing.assert_close(logits, expected[:, :6], rtol=1e-4, atol=1e-4)
    assert tokens[:, 6:].tolist() == expected[:, 5:-1].argmax(-1).tolist()


@torch.no_grad()
def test_beams_follow_the_route_of_their_prompt(model: Any) -> None:
    ids = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))
    arguments = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    together = model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
    for row in range(2):
        alone = model.generate(ids[row : row + 1], attention_mask=torch.ones_like(ids[:1]), **arguments)
        assert together[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_windows", 0),
        ("num_windows", "8"),
        ("router_width", -1),
        ("layers_to_transform", [0, 0]),
        ("layers_to_transform", []),
        ("layers_to_transform", "all"),
        ("layers_to_transform", [True]),
        ("depth_control", 2),
        ("layer_budget", -3),
        ("num_blocks", 1.5),
        ("hidden_size", 0),
        ("checksum", 4),
    ],
)
def test_wrong_configuration_is_refused(field: str, value: Any) -> None:
    with pytest.raises(DrLLMError, match=field):
        DrLLMConfig(**{field: value})


def test_routers_outside_the_stack_are_refused() -> None:
    with pytest.raises(DrLLMError, match="layers_to_transform"):
        get_peft_model(tiny_model("llama"), DrLLMConfig(layers_to_transform=[5]))
