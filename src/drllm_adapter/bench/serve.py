"""What a step of vLLM costs when requests follow paths: routed and plain engines in one process, by turns."""

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from ..decisions import EXECUTE, REPEAT, SKIP, Decisions, execute_all
from ..serving import engine_arguments
from ..serving.arguments import require_vllm
from .timing import Comparison, compare

ALL_EXECUTE_GOAL = 0.97
"""Least speed of requests that run every block, where plain vLLM is 1."""
MIXED_GOAL = 1 / 0.88
"""Least speed of as many paths as requests, of 23 of 30 passes each, where plain vLLM is 1."""
ONE_PATH_GOAL = 1 / 1.05
"""Least speed of one path for all requests, where the time of its share of the blocks and all else is 1."""


def bench_serve(
    adapter: str,
    *,
    base: str | None = None,
    requests: int = 32,
    prompt_tokens: int = 48,
    decode_tokens: int = 48,
    passes: int | None = None,
    repetitions: int = 5,
    dtype: str = "auto",
) -> tuple[list[Comparison], dict[str, Any]]:
    """Speeds against the base in plain vLLM, and what they depend on.

    Args:
        adapter: folder or name on the Hub; its base is served alongside.
        passes: of the paths; None is 23 of 30 blocks, or as many of others.

    Raises:
        DrLLMError: see `engine_arguments`.
    """
    # Before vLLM is imported: the engine in this process, whose processor time is measured.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    require_vllm()
    import vllm

    sizes: dict[str, Any] = {
        "max_model_len": prompt_tokens + decode_tokens + 1,
        "max_num_seqs": requests,
        "dtype": dtype,
    }
    arguments = engine_arguments(adapter, base=base, repeat_blocks=None, **sizes)
    plain = vllm.LLM(arguments["model"], enforce_eager=True, enable_prefix_caching=False, **sizes)
    routed = vllm.LLM(**arguments)
    blocks = routed.llm_engine.model_config.hf_text_config.num_hidden_layers
    vocabulary = routed.llm_engine.model_config.get_vocab_size()
    number = passes or round(23 / 30 * blocks)
    draw = random.Random(0)
    prompts = [
        {"prompt_token_ids": [draw.randrange(3, vocabulary) for _ in range(prompt_tokens)]} for _ in range(requests)
    ]
    repeatable = list(arguments["additional_config"]["drllm"]["repeatable"])
    paths = [_path(draw, blocks, number) for _ in range(requests)]
    repeating = [_path(draw, blocks, number, draw.sample(repeatable, min(blocks // 8, len(repeatable))))
                 for _ in range(requests)]  # fmt: skip

    def run(llm: Any, chosen: Sequence[Decisions | None]) -> Callable[[], None]:
        params = [
            vllm.SamplingParams(
                temperature=0, max_tokens=decode_tokens, ignore_eos=True,
                extra_args=None if path is None else {"drllm_path": list(path)},
            )
            for path in chosen
        ]  # fmt: skip
        return lambda: llm.generate(prompts, params, use_tqdm=False)

    def against_plain(name: str, chosen: Sequence[Decisions | None], goal: float | None = None) -> Comparison:
        setting = f"{requests} requests, {prompt_tokens} + {decode_tokens} tokens"
        return compare(name, setting, run(routed, chosen), run(plain, [None] * requests), repetitions, goal)

    share = f"{number} of {blocks} passes"
    no_block = against_plain("no block at all", [(SKIP,) * blocks] * requests)
    outside = 1 / no_block.ratio
    expected = outside + (1 - outside) * number / blocks
    results = [
        against_plain("all EXECUTE", [execute_all(blocks)] * requests, ALL_EXECUTE_GOAL),
        no_block,
        against_plain(f"one path, {share}", paths[:1] * requests, ONE_PATH_GOAL / expected),
        against_plain(f"4 paths, {share}", [paths[place % 4] for place in range(requests)]),
        against_plain(f"{requests} paths, {share}", paths, MIXED_GOAL if passes is None else None),
        against_plain(f"{requests} paths, {share}, one block in eight repeated", repeating),
        against_plain("the adapter's routers", [None] * requests),
    ]
    import torch

    facts = {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(routed.llm_engine.model_config.dtype).removeprefix("torch."),
        "blocks": blocks,
        "tokens a second, plain vLLM": requests * decode_tokens / results[0].other_seconds,
    }
    return results, facts


def _path(draw: random.Random, blocks: int, passes: int, twice: Sequence[int] = ()) -> Decisions:
    """These blocks repeated, and as many others left out as make the number of passes."""
    others = [block for block in range(blocks) if block not in twice]
    skipped = draw.sample(others, max(0, min(len(others), blocks + len(twice) - passes)))
    return tuple(REPEAT if block in twice else SKIP if block in skipped else EXECUTE for block in range(blocks))
