"""Benchmarks: what routing costs, as ratios of things measured side by side in one run (`drllm bench`).

Every comparison shares one set of weights, interleaves its contestants and reports medians, since machines are noisy.
"""

import copy
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from .adapter.cache import cache_keyword
from .adapter.config import DrLLMConfig
from .adapter.stack import find_stack
from .adapter.steering import force_decisions
from .decisions import Decisions, execute_all, passes, to_path
from .errors import DrLLMError
from .files import write_json_atomic
from .loading import load_base
from .scoring import Scorer
from .tasks import Prompt, Question, build_prompt

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama-3.2-3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
"""Shapes of known models, to be filled with random weights: speed does not depend on what the weights say."""

GOALS = {"forced decode": 0.95, "all execute": 0.97, "routers": 0.97}
"""Least ratio (speed of ours / speed of the other) of each comparison."""


def random_model(shape: str, dtype: torch.dtype, device: str) -> Any:
    """A Llama of a known shape with random weights, made on `device`.

    Raises:
        DrLLMError: the shape has no such name.
    """
    if shape not in SHAPES:
        raise DrLLMError(f"shape must be one of {', '.join(SHAPES)}, but {shape!r} was given; choose one of them.")
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=4096)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def share(module: nn.Module) -> Any:
    """A copy of the module tree with the same parameters."""
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else share(child) for name, child in module._modules.items()}
    for name in ("_parameters", "_buffers", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"):
        setattr(twin, name, copy.copy(getattr(module, name)))
    return twin


def unroll(model: Any, decisions: Decisions) -> Any:
    """The ordinary model whose layer list is the path: weights shared, each position its own `layer_idx`."""
    twin = share(model)
    stack = find_stack(twin)
    path = to_path(decisions)
    blocks = nn.ModuleList([share(stack.blocks[block]) for block in path])
    for position, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", position)  # noqa: B010 - a plain attribute, not a submodule
    setattr(stack.owner, stack.name.rpartition(".")[2], blocks)
    twin.config = stack.owner.config = copy.deepcopy(model.config)
    twin.config.num_hidden_layers = len(path)
    if getattr(twin.config, "layer_types", None) is not None:
        twin.config.layer_types = [model.config.layer_types[block] for block in path]
    return twin


def mixed_path(num_blocks: int, seed: int = 0) -> Decisions:
    """A path with as many repeats as skips, about an eighth of the blocks each."""
    chosen = random.Random(seed).sample(range(num_blocks), 2 * max(1, num_blocks // 8))
    decisions = list(execute_all(num_blocks))
    for place, block in enumerate(chosen):
        decisions[block] = 0 if place % 2 else 2
    return tuple(decisions)


@dataclass(frozen=True)
class Comparison:
    """Speed of ours against another way of doing the same.

    Attributes:
        seconds, other_seconds: medians of one repetition.
        ratio: median over the repetitions of other / ours, so more is better.
        spread: the lower and the upper quartile of that ratio.
        goal: least ratio; None where there is none.
    """

    name: str
    setting: str
    seconds: float
    other_seconds: float
    ratio: float
    spread: tuple[float, float]
    goal: float | None

    @property
    def met(self) -> bool:
        return self.goal is None or self.ratio >= self.goal


def compare(
    name: str, setting: str, ours: Callable[[], None], other: Callable[[], None], repetitions: int
) -> Comparison:
    """Time both, interleaved, each going first every other time."""
    for warm_up in (ours, other):
        warm_up()
    pairs = []
    for repetition in range(repetitions):
        if repetition % 2:
            after = _seconds(other)
            before = _seconds(ours)
        else:
            before = _seconds(ours)
            after = _seconds(other)
        pairs.append((before, after))
    ratios = [after / before for before, after in pairs]
    quartiles = statistics.quantiles(ratios, n=4)
    return Comparison(
        name=name,
        setting=setting,
        seconds=statistics.median(before for before, _ in pairs),
        other_seconds=statistics.median(after for _, after in pairs),
        ratio=statistics.median(ratios),
        spread=(quartiles[0], quartiles[2]),
        goal=GOALS.get(name),
    )


def bench_routing(
    model: Any, *, repetitions: int = 15, prompt_tokens: int = 512, decode_tokens: int = 32, console: Console
) -> list[Comparison]:
    """Decoding along a forced path against the unrolled model, all EXECUTE and a fresh router against the base.

    Args:
        model: a base model without an adapter.
        prompt_tokens: length of the prompt that the routers read.
        decode_tokens: tokens of one repetition of decoding.
    """
    routed = get_peft_model(share(model), DrLLMConfig()).eval()
    num_blocks = len(find_stack(model).blocks)
    path = mixed_path(num_blocks)
    unrolled = unroll(model, path)
    everything = execute_all(num_blocks)
    results = []
    for batch_size in (1, 8):
        prompt = _tokens(model, batch_size, 64)
        for name, ours, other, decisions in (
            ("forced decode", routed, unrolled, path),
            ("all execute", routed, model, everything),
        ):
            setting = f"decode, batch {batch_size}, {passes(decisions)} passes"
            with console.status(f"{name}: {setting}"):
                decode_ours = Decoding(ours, prompt, decode_tokens, decisions)
                decode_other = Decoding(other, prompt, decode_tokens, None)
                results.append(compare(name, setting, decode_ours, decode_other, repetitions))
    prompt = _tokens(model, 1, prompt_tokens)
    with console.status("routers"):
        results.append(
            compare(
                "routers", f"prompt of {prompt_tokens} tokens, batch 1",
                lambda: _prefill(routed, prompt), lambda: _prefill(model, prompt), repetitions,
            )
        )  # fmt: skip
    return results


def bench_search(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, paths: int = 64, repetitions: int = 3, console: Console
) -> Comparison:
    """Paths scored together against one-at-a-time `generate` calls on the same (prompt, path) pairs."""
    routed = get_peft_model(share(model), DrLLMConfig()).eval()
    num_blocks = len(find_stack(model).blocks)
    pairs = [(prompts[place % len(prompts)], mixed_path(num_blocks, place)) for place in range(paths)]
    scorer = Scorer(routed, tokenizer)
    encoded = [
        tokenizer(prompt.text, add_special_tokens=not prompt.templated, return_tensors="pt").to(model.device)
        for prompt, _ in pairs
    ]
    unrolled = [unroll(model, path) for _, path in pairs]

    def together() -> None:
        scorer.score([prompt for prompt, _ in pairs], [path for _, path in pairs])

    @torch.inference_mode()
    def one_at_a_time() -> None:
        for along, inputs, (prompt, _) in zip(unrolled, encoded, pairs, strict=True):
            along.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                max_new_tokens=max(1, prompt.max_new_tokens),
                pad_token_id=0,
            )

    with console.status("search"):
        return compare("search", f"{paths} paths, {prompts[0].mode}", together, one_at_a_time, repetitions)


class Decoding:
    """Greedy decoding of a fixed number of tokens after a prompt that is processed once, outside the measurement."""

    def __init__(self, model: Any, prompt: Tensor, tokens: int, decisions: Decisions | None) -> None:
        self.model, self.prompt, self.tokens = model, prompt, tokens
        self.cache = DynamicCache(config=model.config)
        self.cached = {cache_keyword(model): self.cache}
        with torch.inference_mode():
            if decisions is None:
                model(prompt, **self.cached, logits_to_keep=1)
            else:
                with force_decisions(model, decisions):
                    model(prompt, **self.cached, logits_to_keep=1)

    @torch.inference_mode()
    def __call__(self) -> None:
        token = self.prompt[:, -1:]
        for _ in range(self.tokens):
            token = self.model(token, **self.cached, logits_to_keep=1).logits.argmax(-1)
        self.cache.crop(-self.tokens)


def environment(model: Any) -> dict[str, Any]:
    """What the figures depend on."""
    import peft
    import transformers

    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "blocks": len(find_stack(model).blocks),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def table(results: Sequence[Comparison]) -> Table:
    """The comparisons for people."""
    shown = Table("comparison", "setting", "ours", "other", "ratio", "quartiles", "goal")
    for item in results:
        goal = "" if item.goal is None else f"{item.goal:.2f} {'met' if item.met else 'missed'}"
        shown.add_row(
            item.name,
            item.setting,
            f"{1000 * item.seconds:.1f} ms",
            f"{1000 * item.other_seconds:.1f} ms",
            f"{item.ratio:.3f}",
            f"{item.spread[0]:.3f} to {item.spread[1]:.3f}",
            goal,
        )
    return shown


@torch.inference_mode()
def _prefill(model: Any, prompt: Tensor) -> None:
    model(prompt, **{cache_keyword(model): DynamicCache(config=model.config)}, logits_to_keep=1)


def _tokens(model: Any, batch_size: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, model.config.vocab_size, (batch_size, length), generator=generator).to(model.device)


def _seconds(run: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def run_bench(
    base: str | None,
    *,
    shape: str | None,
    output: Path,
    questions: Sequence[Question],
    mode: str,
    repetitions: int,
    decode_tokens: int,
    prompt_tokens: int,
    paths: int,
    threads: int | None,
    dtype: str,
    device: str | None,
    console: Console,
) -> list[Comparison]:
    """Measure one model, print the table and write it to `output`.

    Args:
        base: folder or Hub name; None is the package's small model.
        shape: a name in `SHAPES` instead: random weights, and no comparison of the search, for want of a tokenizer.

    Raises:
        DrLLMError: both a base and a shape, or see `load_base`.
    """
    if base is not None and shape is not None:
        raise DrLLMError("one model can be measured at a time, but a model and --shape were given; drop one of them.")
    if threads is not None:
        torch.set_num_threads(threads)
    if shape is not None:
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = random_model(shape, torch.bfloat16 if dtype == "auto" else getattr(torch, dtype), place)
        results = bench_routing(
            model,
            repetitions=repetitions,
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            console=console,
        )
    else:
        from .demo import BASE

        model, tokenizer = load_base(base or str(BASE), dtype=dtype, device=device)
        limit = model.config.max_position_embeddings
        results = bench_routing(
            model,
            repetitions=repetitions,
            prompt_tokens=min(prompt_tokens, limit),
            decode_tokens=min(decode_tokens, limit - 64),
            console=console,
        )
        prompts = [build_prompt(question, mode, tokenizer) for question in questions]
        results.append(
            bench_search(model, tokenizer, prompts, paths=paths, repetitions=max(3, repetitions // 5), console=console)
        )
    console.print(table(results))
    facts = {"model": shape or base or "demo", **environment(model), "repetitions": repetitions}
    write_json_atomic(output, {**facts, "results": [{**asdict(item), "met": item.met} for item in results]})
    return results
