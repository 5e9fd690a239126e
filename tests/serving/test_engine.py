"""Routed models in the real vLLM, on a CPU: `tests/serving/make_venv.sh` makes what `pytest -m vllm` needs.

The oracles: unrolled checkpoints in plain vLLM, to the last bit, and the library itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asked import NEW, Tokens, decided, is_greedy, prompts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM
from unrolled import tiny_model, unrolled

from drllm_adapter import DrLLMError, set_depth_control, set_layer_budget
from drllm_adapter.demo import BASE
from drllm_adapter.models.unroll import look_at_base, write_unrolled
from drllm_adapter.serving import engine_arguments, paths_of

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

# Pages of 32 tokens, so that prompts have whole ones, which can be shared.
SMALL: dict[str, Any] = {"dtype": "float32", "max_model_len": 96, "max_num_seqs": 16, "block_size": 32, "seed": 0}


def answers(llm: Any, asked: list[Tokens], extra: list[dict[str, Any]] | None = None, **params: Any) -> list[Any]:
    from vllm import SamplingParams

    chosen = [
        SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, extra_args=its, **params)
        for its in extra or [{}] * len(asked)
    ]
    return list(llm.generate([{"prompt_token_ids": its} for its in asked], chosen, use_tqdm=False))


def tokens(outputs: list[Any]) -> list[Tokens]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def start() -> Callable[..., Any]:
    """Starts engines, and keeps them: the end of one takes vLLM's process groups away from the others."""
    from vllm import LLM

    started = []

    def engine(**arguments: Any) -> Any:
        started.append(LLM(**arguments, **SMALL))
        return started[-1]

    return engine


@pytest.fixture(scope="module")
def forced(base: str, start: Callable[..., Any]) -> Any:
    return start(**engine_arguments(base, enable_prefix_caching=True))


@pytest.fixture(scope="module")
def routed(adapter: str, start: Callable[..., Any]) -> Any:
    return start(**engine_arguments(adapter))


@pytest.fixture(scope="module")
def plain(base: str, start: Callable[..., Any]) -> Any:
    """vLLM as it is."""
    return start(model=base, enforce_eager=True)


DECISIONS = st.lists(st.integers(0, 2), min_size=8, max_size=8)


@settings(max_examples=10)
@given(paths=st.lists(DECISIONS, min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_mixed_requests_along_drawn_paths(forced: Any, library: Any, paths: list[list[int]], seed: int) -> None:
    """Every request of a batch gives the tokens of its path alone; prefixes that are cached are those of its path."""
    asked = prompts(len(paths), seed)
    if seed % 2:  # one prompt along many paths: what is cached of one must not serve another
        asked = [(asked[0] * 30)[:70]] * len(paths)
    outputs = answers(forced, asked, [{"drllm_path": path} for path in paths])
    assert paths_of(forced, outputs) == [tuple(path) for path in paths]
    for its, path, answer in zip(asked, paths, tokens(outputs), strict=True):
        assert is_greedy(library, path, its, answer)


def test_prefixes_are_shared_along_one_path(forced: Any) -> None:
    (asked,) = prompts(1, 5)
    asked = (asked * 40)[:80]
    path = {"drllm_path": "0 1 2 2 3 5-7"}
    first, again = (answers(forced, [asked], [path])[0] for _ in range(2))
    other = answers(forced, [asked], [{"drllm_path": "0-7"}])[0]
    assert (first.num_cached_tokens, other.num_cached_tokens) == (0, 0)
    assert again.num_cached_tokens == 64
    assert tokens([again]) == tokens([first])


# As many passes as the base has blocks, so that the engine of the base can run the unrolled checkpoint.
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    paths=st.lists(
        st.integers(0, 4).flatmap(lambda n: st.permutations([0] * n + [2] * n + [1] * (8 - 2 * n))),
        min_size=2, max_size=4,
    ),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_an_unrolled_checkpoint_in_plain_vllm_answers_alike(
    base: str, forced: Any, plain: Any, tmp_path: Path, paths: list[list[int]], seed: int
) -> None:
    """To the last bit of the likelihoods where a request runs alone; among others, sums may round differently."""
    asked = prompts(len(paths), seed)
    mixed = answers(forced, asked, [{"drllm_path": path} for path in paths])
    for its, path, among_others in zip(asked, paths, mixed, strict=True):
        write_unrolled(look_at_base(base), path, tmp_path / "unrolled")
        plain.collective_rpc("reload_weights", kwargs={"weights_path": str(tmp_path / "unrolled")})
        (right,), (alone,) = (
            answers(engine, [its], [arguments], logprobs=2)
            for engine, arguments in ((plain, {}), (forced, {"drllm_path": path}))
        )
        assert tokens([alone]) == tokens([right])
        assert alone.outputs[0].logprobs == right.outputs[0].logprobs
        assert is_same(right.outputs[0], list(among_others.outputs[0].token_ids))


def is_same(right: Any, answer: Tokens) -> bool:
    """Whether an answer is the right one up to a token than which another was as likely."""
    for token, other, likely in zip(right.token_ids, answer, right.logprobs, strict=True):
        if token != other:
            return other in likely and likely[token].logprob - likely[other].logprob < 1e-3
    return True


def test_routers_decide_as_in_the_library(routed: Any, library: Any) -> None:
    asked = prompts(50, 1)
    outputs = answers(routed, asked)
    paths = [decided(library, its) for its in asked]
    assert len(set(paths)) > 5
    assert paths_of(routed, outputs) == paths
    for its, path, answer in zip(asked, paths, tokens(outputs), strict=True):
        assert is_greedy(library, path, its, answer)


@pytest.mark.parametrize(
    ("extra", "steer"),
    [
        ({"drllm_depth_control": -0.8}, lambda model: set_depth_control(model, -0.8)),
        ({"drllm_layer_budget": 5}, lambda model: set_layer_budget(model, 5)),
    ],
)
def test_a_request_steers_its_routers_alone(
    base: str, routed: Any, adapter: str, extra: dict[str, Any], steer: Callable[[Any], None]
) -> None:
    as_saved = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    steered = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    steer(steered)
    asked = prompts(10, 2)
    outputs = answers(routed, asked, [extra if place % 2 else {} for place in range(10)])
    for place, taken in enumerate(paths_of(routed, outputs)):
        assert taken == decided(steered if place % 2 else as_saved, asked[place])


def test_preempted_requests_keep_their_path(adapter: str, library: Any, start: Callable[..., Any]) -> None:
    """So few pages that requests are thrown out and come back, routed and forced ones side by side."""
    llm = start(**engine_arguments(adapter, num_gpu_blocks_override=5))
    thrown_out = _count_preemptions(llm)
    asked = [its + its for its in prompts(10, 3)]
    path = [1, 2, 0, 1, 2, 0, 1, 1]
    outputs = answers(llm, asked, [{"drllm_path": path} if place % 3 == 0 else {} for place in range(10)])
    assert thrown_out[0] > 0
    paths = [tuple(path) if place % 3 == 0 else decided(library, its) for place, its in enumerate(asked)]
    assert paths_of(llm, outputs) == paths
    for its, taken, answer in zip(asked, paths, tokens(outputs), strict=True):
        assert is_greedy(library, taken, its, answer)


def _count_preemptions(llm: Any) -> list[int]:
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    count, preempt = [0], scheduler._preempt_request

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return preempt(*args, **kwargs)

    scheduler._preempt_request = counted
    return count


def test_aborted_requests_leave_the_others_alone(routed: Any, library: Any) -> None:
    from vllm import SamplingParams

    engine, asked = routed.llm_engine, prompts(9, 4)
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    for place, its in enumerate(asked):
        engine.add_request(f"request{place}", {"prompt_token_ids": its}, params)
    finished: dict[str, Any] = {}
    for step in range(100):
        if step == 3:
            engine.abort_request([f"request{place}" for place in range(0, 9, 2)])
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output
        if not engine.has_unfinished_requests():
            break
    for place in range(1, 9, 2):
        (answer,) = tokens([finished[f"request{place}"]])
        assert is_greedy(library, decided(library, asked[place]), asked[place], answer)


def test_a_bad_path_ends_its_request_alone(forced: Any, library: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    (asked,) = prompts(1)
    for wrong in ([1] * 7, "7 6", {"a": 1}):
        with pytest.raises(VLLMValidationError, match=r"path|decisions"):
            answers(forced, [asked], [{"drllm_path": wrong}])
    (answer,) = tokens(answers(forced, [asked]))
    assert is_greedy(library, [1] * 8, asked, answer)


def test_a_beam_search_is_refused(forced: Any) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import BeamSearchParams

    with pytest.raises(VLLMValidationError, match="beam search must not be used"):
        forced.beam_search([{"prompt_token_ids": prompts(1)[0]}], BeamSearchParams(beam_width=2, max_tokens=4))


def test_arguments_that_leave_the_path_are_refused(adapter: str) -> None:
    for wrong in (
        {"enforce_eager": False},
        {"enable_lora": True},
        {"enable_chunked_prefill": True},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        {"kv_transfer_config": {"kv_connector": "ExampleConnector"}},
        {"pipeline_parallel_size": 2},
    ):
        with pytest.raises(DrLLMError, match=f"vLLM's {next(iter(wrong))} must be"):
            engine_arguments(adapter, **wrong)
    for name in ("worker_cls", "scheduler_cls"):
        with pytest.raises(DrLLMError, match=f"vLLM's {name} is needed"):
            engine_arguments(adapter, **{name: "some.Class"})
    with pytest.raises(DrLLMError, match="from 0 to 7"):
        engine_arguments(adapter, repeat_blocks=[8])
    with pytest.raises(DrLLMError, match="are 24 wide"):
        engine_arguments(str(BASE))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mistral"])
def test_other_architectures(model_type: str, start: Callable[..., Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}
    window = {"use_sliding_window": False} if model_type == "qwen2" else {"sliding_window": None}
    model = tiny_model(model_type, 3, **sizes, **window, max_position_embeddings=96, vocab_size=80)
    model.save_pretrained(tmp_path)
    llm = start(**engine_arguments(str(tmp_path), skip_tokenizer_init=True))
    paths, asked = [[1, 2, 0], [0, 1, 2], [1, 1, 1], [0, 0, 2]], prompts(4, 6)
    outputs = answers(llm, asked, [{"drllm_path": path} for path in paths], detokenize=False)
    for its, path, answer in zip(asked, paths, tokens(outputs), strict=True):
        assert is_greedy(unrolled(model, path), None, its, answer)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"enforce_eager": False}, "enforce_eager"),
        ({"worker_cls": "auto"}, "worker_cls"),
        ({"additional_config": {}}, "engine_arguments"),
        ({"enable_prefix_caching": True, "scheduler_cls": None}, "cached by path"),
    ],
)
def test_an_engine_that_was_started_in_another_way_is_refused(base: str, changed: dict[str, Any], problem: str) -> None:
    from vllm import LLM

    with pytest.raises(DrLLMError, match=problem):
        LLM(**{**engine_arguments(base, **SMALL), **changed})


def test_models_of_another_make_are_refused_by_name(tmp_path: Path) -> None:
    """OPT's blocks take no residual, Mistral's may have a window, Cohere's do not add their residual."""
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )
    from vllm import LLM

    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 80}
    made = {
        "opt": (OPTForCausalLM(OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=64)), "OPTDecoderLayer"),
        "mistral": (
            MistralForCausalLM(
                MistralConfig(**sizes, intermediate_size=64, num_key_value_heads=2, sliding_window=16, head_dim=32)
            ),
            "sliding window of 16",
        ),
        "cohere": (CohereForCausalLM(CohereConfig(**sizes, intermediate_size=64)), "in another way"),
    }
    for name, (model, problem) in made.items():
        model.save_pretrained(tmp_path / name)
        arguments = engine_arguments(str(tmp_path / name), skip_tokenizer_init=True, **SMALL)
        with pytest.raises(DrLLMError, match=problem):
            LLM(**arguments)
