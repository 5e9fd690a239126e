"""Every cache, continuation and kind of input against the unrolled model, over unlike architectures."""

import copy
import importlib.util
from functools import lru_cache
from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_architectures import DECISIONS, batch, relative
from tiny import NUM_BLOCKS, VOCABULARY, tiny_model
from transformers import Cache, DynamicCache, QuantizedCache, StaticCache, cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin
from unroll import unrolled

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions
from drllm_adapter.adapter.cache import routed_entry
from drllm_adapter.adapter.calling import cache_keyword
from drllm_adapter.adapter.layer import observe_router_inputs, routed_layers

ATTENTION = ("llama", "gemma3_text", "mixtral", "deepseek_v3", "gpt2", "bloom")
STATES = ("lfm2", "qwen3_next", "mamba")
TOLERANCE = 2e-4
STEPS = 5
NEWEST = hasattr(cache_utils, "DummyLayer")  # transformers 5.23

pytestmark = pytest.mark.filterwarnings("ignore")


@lru_cache
def base_and_routed(model_type: str, attention: str = "sdpa") -> tuple[Any, Any]:
    base = tiny_model(model_type, attention)
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    # Routers with opinions of their own: prompts differ in what they decide.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in routed_layers(model):
            up = layer.drllm_router["default"].up
            up.weight.copy_(torch.randn(up.weight.shape, generator=generator))
            up.bias.zero_()
    return base, model


@lru_cache(maxsize=128)
def truth(model_type: str, decisions: tuple[int, ...], attention: str = "sdpa") -> Any:
    return unrolled(base_and_routed(model_type, attention)[0], list(decisions))


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def greedy(model: Any, ids: torch.Tensor, steps: int = STEPS, **arguments: Any) -> list[list[int]]:
    mask = arguments.pop("attention_mask", torch.ones_like(ids))
    made = model.generate(ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, **arguments)
    return [row[ids.shape[1] :].tolist() for row in made]


def expected_rows(model_type: str, paths: list[list[int]], ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """Greedy tokens of each row alone in its unrolled model, without a cache."""
    return [
        greedy(truth(model_type, tuple(path)), row[real.bool()][None], use_cache=False)[0]
        for path, row, real in zip(paths, ids, mask, strict=True)
    ]


@pytest.mark.parametrize("model_type", ATTENTION + STATES)
@torch.no_grad()
def test_every_cache_of_a_mixed_batch(model_type: str) -> None:
    routed = base_and_routed(model_type)[1]
    ids, mask, _ = batch()
    expected = expected_rows(model_type, DECISIONS, ids, mask)
    keyword = "cache_params" if model_type == "mamba" else cache_keyword(routed)
    config = routed.config
    caches: dict[str, dict[str, Any]] = {
        "made by generate": {},
        "static": {"cache_implementation": "static"},
        "given": {keyword: DynamicCache(config=config)},
        "given static": {keyword: StaticCache(config=config, max_cache_len=32)},
    }
    if model_type in ATTENTION:
        caches["given without a configuration"] = {keyword: DynamicCache()}
    if model_type == "llama":
        # Memory for a certain number of rows, made before anything is known of the route.
        early = StaticCache(config=config, max_cache_len=32)
        early.early_initialization(3, 2, 8, torch.float32, torch.device("cpu"))
        caches["allocated early"] = {keyword: early}
    for name, arguments in caches.items():
        with force_decisions(routed, DECISIONS):
            assert greedy(routed, ids, attention_mask=mask, **arguments) == expected, name
    reused = caches["given static"][keyword]
    reused.reset()
    turned = [DECISIONS[1], DECISIONS[2], DECISIONS[0]]
    with force_decisions(routed, turned):
        again = greedy(routed, ids, attention_mask=mask, **{keyword: reused})
    assert again == expected_rows(model_type, turned, ids, mask)


@pytest.mark.parametrize("backend", ["fp8", "hqq", "quanto"] if NEWEST else ["hqq", "quanto"])
@pytest.mark.parametrize("path", [[0, 2, 1, 2], [2, 1, 0, 1]])
@torch.no_grad()
def test_a_quantized_cache_is_the_unrolled_models(backend: str, path: list[int]) -> None:
    package = {"hqq": "hqq", "quanto": "optimum.quanto"}.get(backend)
    if package is not None and (importlib.util.find_spec(package.partition(".")[0]) is None):
        pytest.skip(f"needs {package}")
    options: dict[str, Any] = {} if backend == "fp8" else {"nbits": 4, "q_group_size": 8, "residual_length": 4}
    if backend == "hqq":
        options |= {"axis_key": 1, "axis_value": 1}
    routed = base_and_routed("llama")[1]
    model = truth("llama", tuple(path))
    ids = tokens(2, 9)
    with force_decisions(routed, path):
        found = greedy(routed, ids, 8, past_key_values=QuantizedCache(backend, routed.config, **options))
        beams = greedy(routed, ids, 8, num_beams=2, past_key_values=QuantizedCache(backend, routed.config, **options))
    assert found == greedy(model, ids, 8, past_key_values=QuantizedCache(backend, model.config, **options))
    assert beams == greedy(model, ids, 8, num_beams=2, past_key_values=QuantizedCache(backend, model.config, **options))


def answers(cache: Cache) -> dict[str, Any]:
    """What transformers asks a cache about its blocks when it makes masks and positions, or takes tokens back."""
    found: dict[str, Any] = {name: getattr(cache, name, None) for name in ("is_linear", "is_sliding", "is_dummy")}
    found["is_compileable"] = cache.is_compileable
    for block, layer in enumerate(cache.layers):
        if isinstance(layer, CacheLayerMixin):
            found[f"length of {block}"] = int(cache.get_seq_length(block))
            found[f"mask sizes of {block}"] = tuple(map(int, cache.get_mask_sizes(2, block)))
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            found[f"state of {block}"] = cache.has_previous_state(block)
    return found


@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
@pytest.mark.parametrize(
    "model_type", ["llama", "gemma3_text", "lfm2", "qwen3_next", "falcon_h1", "mamba", "nemotron_h"]
)
@torch.no_grad()
def test_a_cache_answers_as_the_base_models(model_type: str, make: type[Cache]) -> None:
    """Full, sliding and linear attention, both in one block, or neither: kind and length follow no route."""
    if model_type == "nemotron_h" and not NEWEST:
        pytest.skip("before transformers 5.23 blocks that keep nothing have a cache layer for states that stays empty")
    base, routed = base_and_routed(model_type)
    keyword = "cache_params" if model_type == "mamba" else cache_keyword(routed)
    options = {} if make is DynamicCache else {"max_cache_len": 16}
    expected = make(config=base.config, **options)
    for ids in (tokens(1, 9), tokens(1, 1)):
        base(ids, **{keyword: expected})
    for path in ([1, 1, 1, 1], [0, 2, 1, 2], [2, 0, 0, 1], [0, 0, 0, 0]):
        cache = make(config=base.config, **options)
        with force_decisions(routed, path):
            for ids in (tokens(1, 9), tokens(1, 1)):
                routed(ids, **{keyword: cache})
        assert answers(cache) == answers(expected)


KINDS: dict[str, dict[str, Any]] = {
    "DynamicLayer": {},
    "DynamicSlidingWindowLayer": {"sliding_window": 6},
    "StaticLayer": {"max_cache_len": 16},
    "StaticSlidingWindowLayer": {"max_cache_len": 16, "sliding_window": 6},
    "LinearAttentionLayer": {},
    "LinearAttentionAndFullAttentionLayer": {},
    "LinearAttentionAndSlidingWindowAttentionLayer": {"sliding_window": 6},
    "DummyLayer": {},
}
KINDS = {name: options for name, options in KINDS.items() if hasattr(cache_utils, name)}  # some came after 5.18


def test_every_kind_of_cache_layer_stays_of_its_kind() -> None:
    """Those of no model here too: a route changes what a block keeps, not what transformers takes its entry for."""
    cache = Cache(layers=[getattr(cache_utils, name)(**options) for name, options in KINDS.items()])
    before = answers(cache)
    for block, layer in enumerate(cache.layers):
        assert type(routed_entry(cache, block).blank()) is type(layer)
    assert answers(cache) == before


class AwayLayer(DynamicLayer):
    """Refuses to be read while it is put away, as tensors on two devices would be."""

    away = False

    def offload(self) -> None:
        self.away = True

    def prefetch(self) -> None:
        self.away = False

    def update(self, *args: Any, **kwargs: Any) -> Any:
        assert not self.away
        return super().update(*args, **kwargs)


class AwayCache(DynamicCache):
    """Offloads as transformers' cache does - the next entry is fetched ahead, the used one put away - on the CPU."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.layers = [AwayLayer() for _ in range(NUM_BLOCKS)]
        self.offloading = True

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.layers[(layer_idx + 1) % len(self.layers)].prefetch()
        result = self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)
        self.layers[layer_idx].offload()
        return result


@torch.no_grad()
def test_an_offloaded_cache() -> None:
    routed = base_and_routed("llama")[1]
    ids, mask, _ = batch()
    cache = AwayCache(config=routed.config)
    paths = [[1, 0, 2, 1], [1, 0, 1, 2], [0, 0, 2, 2]]
    with force_decisions(routed, paths):
        found = greedy(routed, ids, attention_mask=mask, past_key_values=cache)
    assert found == expected_rows("llama", paths, ids, mask)
    assert all(layer.away for entry in cache.layers[1:] for layer in entry.passes)  # the first is fetched again


@torch.no_grad()
def test_memory_follows_the_path() -> None:
    """Bytes of keys and values: one entry a pass and row, none for a skipped block."""
    routed = base_and_routed("llama")[1]
    ids, mask, _ = batch()

    def size(paths: list[list[int]]) -> int:
        cache = DynamicCache(config=routed.config)
        with force_decisions(routed, paths):
            routed(ids, attention_mask=mask, past_key_values=cache)
        entries = [layer for entry in cache.layers for layer in entry.passes]
        return sum(t.numel() * t.element_size() for layer in entries for t in (layer.keys, layer.values))

    one_pass_of_a_row = 2 * 2 * ids.shape[1] * 8 * 4  # keys and values, heads, tokens, width, float32
    for paths in (DECISIONS, [[1] * NUM_BLOCKS] * 3, [[0] * NUM_BLOCKS] * 3, [[2, 0, 0, 0], [0] * 4, [0, 1, 0, 0]]):
        assert size(paths) == one_pass_of_a_row * sum(map(sum, paths))


@pytest.mark.parametrize("model_type", ATTENTION + STATES)
@torch.no_grad()
def test_a_prefix_is_routed_once_and_continued_often(model_type: str) -> None:
    """Decisions are the prefix's, whatever follows: each continuation is the unrolled model on the whole text."""
    routed = base_and_routed(model_type)[1]
    keyword = "cache_params" if model_type == "mamba" else cache_keyword(routed)
    prefix = tokens(1, 7, seed=3)
    cache = DynamicCache(config=routed.config)
    routed(prefix, **{keyword: cache})
    path = tuple(last_decisions(routed)[0].tolist())
    for seed, length in ((4, 1), (5, 4)):
        suffix = tokens(1, length, seed=seed)
        whole = torch.cat([prefix, suffix], dim=1)
        expected = truth(model_type, path)(whole).logits[:, 7:]
        if model_type == "mamba":  # its own continuation takes one token at a time
            held = copy.deepcopy(cache)
            found = torch.cat([routed(token, **{keyword: held}).logits for token in suffix.split(1, 1)], dim=1)
        else:
            found = routed(suffix, **{keyword: copy.deepcopy(cache)}).logits
        assert relative(found, expected) < TOLERANCE
        assert tuple(last_decisions(routed)[0].tolist()) == path


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mixtral", "qwen3_next", "bloom"])
@torch.no_grad()
def test_a_chat_keeps_the_route_of_its_first_turn(model_type: str) -> None:
    routed = base_and_routed(model_type)[1]
    first, second = tokens(2, 6, seed=6), tokens(2, 4, seed=7)
    cache = DynamicCache(config=routed.config)
    arguments = {"max_new_tokens": 3, "do_sample": False}
    turn = routed.generate(first, attention_mask=torch.ones_like(first), past_key_values=cache, **arguments)
    paths = last_decisions(routed).tolist()
    whole = torch.cat([turn, second], dim=1)
    found = routed.generate(whole, attention_mask=torch.ones_like(whole), past_key_values=cache, **arguments)
    assert last_decisions(routed).tolist() == paths
    for row, path in enumerate(paths):
        model = truth(model_type, tuple(path))
        expected = model.generate(whole[row : row + 1], attention_mask=torch.ones_like(whole[:1]), **arguments)
        assert found[row].tolist() == expected[0].tolist()
    # A new cache is a new conversation: everything is read, and so may be routed differently.
    routed.generate(whole, attention_mask=torch.ones_like(whole), **arguments)
    anew = last_decisions(routed).tolist()
    routed(whole)
    assert last_decisions(routed).tolist() == anew


@pytest.mark.parametrize("path", [[0, 2, 1, 2], [2, 0, 2, 1]])
@torch.no_grad()
def test_candidates_in_a_second_turn_are_taken_back_from_windows(path: list[int]) -> None:
    """A cache that already holds a route is told to remember what leaves its windows, and does as the unrolled model's.

    Not as decoding without a cache: there transformers itself differs once the window is full.
    """
    routed, model = base_and_routed("gemma3_text")[1], truth("gemma3_text", tuple(path))
    first, second = tokens(1, 4, seed=6), tokens(1, 3, seed=7).repeat(1, 4)

    def two_turns(model: Any) -> list[list[int]]:
        cache = DynamicCache(config=model.config)
        turn = first[0].tolist() + greedy(model, first, 2, past_key_values=cache)[0]
        whole = torch.cat([torch.tensor([turn]), second], dim=1)
        return greedy(model, whole, 9, past_key_values=cache, prompt_lookup_num_tokens=3)

    with force_decisions(routed, path):
        found = two_turns(routed)
    assert found == two_turns(model)


@pytest.mark.parametrize("model_type", [*ATTENTION, *STATES, "falcon_h1", "nemotron_h"])
@torch.no_grad()
def test_a_cache_that_the_base_filled(model_type: str) -> None:
    """It continues as a route in which every block executes, whatever was decided elsewhere, and goes back."""
    base, routed = base_and_routed(model_type)
    keyword = "cache_params" if model_type == "mamba" else cache_keyword(routed)
    whole = tokens(2, 9, seed=11)
    cache = DynamicCache(config=routed.config)
    with routed.disable_adapter():
        routed(whole[:, :6], **{keyword: cache})
    with force_decisions(routed, [0] * NUM_BLOCKS):
        routed(tokens(3, 5))
    found = [routed(whole[:, place : place + 1], **{keyword: cache}).logits for place in (6, 7)]
    with routed.disable_adapter():
        found.append(routed(whole[:, 8:], **{keyword: cache}).logits)
    assert relative(torch.cat(found, dim=1), base(whole).logits[:, 6:]) < TOLERANCE


@torch.no_grad()
def test_a_prompt_in_chunks() -> None:
    """Right where nothing is decided or nothing is cut, refused otherwise."""
    routed = base_and_routed("llama")[1]
    ids, mask, _ = batch()
    whole = greedy(routed, ids, attention_mask=mask)
    paths = last_decisions(routed).tolist()
    assert greedy(routed, ids, attention_mask=mask, prefill_chunk_size=9) == whole
    with pytest.raises(DrLLMError, match="prefill_chunk_size"):
        greedy(routed, ids, attention_mask=mask, prefill_chunk_size=4)
    if NEWEST:  # before, nothing tells a last chunk of one token from decoding: docs/compatibility.md
        with pytest.raises(DrLLMError, match="prefill_chunk_size"):
            greedy(routed, ids, attention_mask=mask, prefill_chunk_size=8)
    with force_decisions(routed, paths):
        assert greedy(routed, ids, attention_mask=mask, prefill_chunk_size=4) == whole
    assert greedy(routed, ids, attention_mask=mask) == whole  # and the refusal left nothing behind


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "mixtral", "deepseek_v3"])
@torch.no_grad()
def test_embeddings_positions_and_masks_of_the_callers_own(model_type: str) -> None:
    routed = base_and_routed(model_type)[1]
    ids = tokens(3, 7)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril() & (torch.rand(3, 1, 7, 7) > 0.3) | torch.eye(7).bool()
    inputs: list[dict[str, Any]] = [
        {"inputs_embeds": routed.get_input_embeddings()(ids)},
        {"input_ids": ids, "position_ids": torch.arange(5, 12)[None]},
        {"input_ids": ids, "position_ids": torch.arange(7)[None] + torch.tensor([[0], [9], [4]])},
    ]
    if model_type != "gemma3_text":  # a window needs a mask of its own
        inputs.append({"input_ids": ids, "attention_mask": allowed})
    for arguments in inputs:
        with force_decisions(routed, DECISIONS):
            found = routed(**arguments).logits
        for row, path in enumerate(DECISIONS):
            alone = {name: value[row : row + 1] if len(value) == 3 else value for name, value in arguments.items()}
            assert relative(found[row], truth(model_type, tuple(path))(**alone).logits[0]) < TOLERANCE


@torch.no_grad()
def test_padding_is_found_in_a_mask_of_four_dimensions() -> None:
    routed = base_and_routed("llama")[1]
    ids, mask, positions = batch()
    routed(ids, attention_mask=mask, position_ids=positions)
    decided = last_decisions(routed).tolist()
    allowed = torch.ones(9, 9, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    routed(ids, attention_mask=allowed, position_ids=positions)
    assert last_decisions(routed).tolist() == decided
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    routed(ids, attention_mask=added, position_ids=positions)
    assert last_decisions(routed).tolist() == decided
    # A window hides tokens from the last one, and they are no padding.
    windows: list[list[int]] = []
    with observe_router_inputs(routed, lambda block, means, used: windows.append(used.tolist())):
        routed(ids, attention_mask=allowed & torch.ones(9, 9, dtype=torch.bool).triu(-2), position_ids=positions)
    assert windows == [[6, 8, 8]] * NUM_BLOCKS  # tokens of each row, eight windows at most
    with pytest.raises(DrLLMError, match=r"\[3, 1, 1, 9\] for 9 tokens"):
        routed(ids, attention_mask=mask.bool()[:, None, None, :], position_ids=positions)


@torch.no_grad()
def test_packed_rows_are_refused_unless_the_path_is_given() -> None:
    routed = base_and_routed("llama")[1]
    one, two = tokens(1, 5, seed=1), tokens(1, 4, seed=2)
    packed = {
        "input_ids": torch.cat([one, two], dim=1),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]]),
        "use_cache": False,
    }
    with pytest.raises(DrLLMError, match="one sequence"):
        routed(**packed)
    lengths = torch.tensor([0, 5, 9], dtype=torch.int32)
    with pytest.raises(DrLLMError, match="cu_seq_lens_q"):
        routed(packed["input_ids"], cu_seq_lens_q=lengths, cu_seq_lens_k=lengths)
    path = [0, 2, 1, 2]
    with force_decisions(routed, path):
        found = routed(**packed).logits
    model = truth("llama", tuple(path))
    expected = torch.cat([model(one).logits, model(two).logits], dim=1)
    assert relative(found, expected) < TOLERANCE


def test_a_cache_that_is_not_made_of_layers_is_refused() -> None:
    class Other(Cache):
        def __init__(self) -> None:
            pass

    with pytest.raises(DrLLMError, match="made of layers"):
        base_and_routed("llama")[1](tokens(1, 4), past_key_values=Other())
