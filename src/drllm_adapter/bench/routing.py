"""What routing costs: forced paths against unrolled models, all EXECUTE and routers against the base, mixed batches."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from rich.console import Console
from torch import Tensor
from transformers import CompileConfig, DynamicCache

from ..adapter.batch_decisions import select_rows
from ..adapter.calling import cache_keyword, last_position
from ..adapter.config import DrLLMConfig
from ..adapter.stack import find_stack
from ..adapter.steering import force_decisions
from ..decisions import Decisions, execute_all, passes
from .models import mixed_path, share, unroll
from .timing import Comparison, compare

GOALS = {"forced decode": 0.98, "all execute": 0.99, "mixed batch": 0.9, "routers": 0.98, "compiled decode": 0.97}
"""Least ratio (speed of ours / speed of the other) of each comparison."""

MIXED_ROWS = 16


def bench_routing(
    model: Any,
    *,
    repetitions: int = 15,
    prompt_tokens: int = 512,
    decode_tokens: int = 32,
    compiled: bool = False,
    console: Console,
) -> list[Comparison]:
    """Decoding along a forced path against the unrolled model, all EXECUTE and a fresh router against the base.

    Args:
        model: a base model without an adapter.
        prompt_tokens: length of the prompt that the routers read; both are cut to the model's positions.
        decode_tokens: tokens of one repetition of decoding.
        compiled: also `generate` with a static cache and compiled decoding, which takes minutes to compile.
    """
    limit = (
        getattr(model.config.get_text_config(), "max_position_embeddings", None) or prompt_tokens + decode_tokens + 64
    )
    prompt_tokens, decode_tokens = min(prompt_tokens, limit), min(decode_tokens, limit - 64)
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
                results.append(compare(name, setting, decode_ours, decode_other, repetitions, GOALS[name]))
    results += _mixed_batch(model, routed, decode_tokens, repetitions, console)
    prompt = _tokens(model, 1, prompt_tokens)
    with console.status("routers"):
        results.append(
            compare(
                "routers", f"prompt of {prompt_tokens} tokens, batch 1",
                lambda: _prefill(routed, prompt), lambda: _prefill(model, prompt), repetitions, GOALS["routers"],
            )
        )  # fmt: skip
    if compiled:
        prompt = _tokens(model, 1, 64)
        with console.status("compiled decode"), force_decisions(routed, path):
            results.append(
                compare(
                    "compiled decode", f"generate, static cache, batch 1, {passes(path)} passes",
                    lambda: _generate_compiled(routed, prompt, decode_tokens),
                    lambda: _generate_compiled(unrolled, prompt, decode_tokens),
                    repetitions, GOALS["compiled decode"],
                )
            )  # fmt: skip
    return results


def _mixed_batch(model: Any, routed: Any, decode_tokens: int, repetitions: int, console: Console) -> list[Comparison]:
    """Decoding rows of different paths together against the mean of their paths, each for a whole batch.

    Four paths stand for the sixteen: so many batches are measured in turn. The second comparison says how much of the
    difference no way of routing could avoid: it is with a model that makes the same passes of as many rows.
    """
    num_blocks = len(find_stack(model).blocks)
    prompt = _tokens(model, MIXED_ROWS, 64)
    paths = [mixed_path(num_blocks, seed) for seed in range(4)]
    by_row = [paths[row % 4] for row in range(MIXED_ROWS)]
    mixed = Decoding(routed, prompt, decode_tokens, by_row)
    uniform = [Decoding(routed, prompt, decode_tokens, path) for path in paths]
    written_out = Decoding(_written_out(model, by_row), prompt, decode_tokens, None)
    turn = itertools.cycle(uniform)
    repetitions = max(repetitions // 4, 1) * 4
    with console.status("mixed batch"):
        setting = f"decode, batch {MIXED_ROWS}, {len(paths)} paths"
        return [
            compare("mixed batch", setting, mixed, lambda: next(turn)(), repetitions, GOALS["mixed batch"]),
            compare("mixed, written out", setting, mixed, written_out, repetitions),
        ]


def _written_out(model: Any, decisions: Sequence[Decisions]) -> Any:
    """The ordinary model with a block for each pass that some row makes, for as many rows, which are the first ones.

    So it finds no rows and puts none back; that the wrong ones run takes as long.
    """
    twin = unroll(model, tuple(map(max, zip(*decisions, strict=True))))
    rows = [
        sum(times > number for times in block) for block in zip(*decisions, strict=True) for number in range(max(block))
    ]
    for block, count in zip(find_stack(twin).blocks, rows, strict=True):
        if count < len(decisions):
            block.forward = _for_the_first(count, block.forward)
    return twin


def _for_the_first(count: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward that computes the first `count` rows and passes the others by."""
    hidden_argument = next(iter(inspect.signature(forward).parameters))

    def run(*args: Any, **kwargs: Any) -> Any:
        hidden, *others = args or (kwargs.pop(hidden_argument),)
        others, kwargs = select_rows((others, kwargs), torch.arange(count, device=hidden.device), len(hidden))
        output = forward(hidden[:count], *others, **kwargs)
        computed, *more = output if isinstance(output, tuple) else (output,)
        whole = torch.cat([computed, hidden[count:]])
        return (whole, *more) if isinstance(output, tuple) else whole

    return run


class Decoding:
    """Greedy decoding of a fixed number of tokens after a prompt that is processed once, outside the measurement.

    As in `generate`, which a `PeftModel` hands to the transformers model inside it.
    """

    def __init__(
        self, model: Any, prompt: Tensor, tokens: int, decisions: Decisions | Sequence[Decisions] | None
    ) -> None:
        self.model = model.get_base_model() if isinstance(model, PeftModel) else model
        self.prompt, self.tokens = prompt, tokens
        self.cache = DynamicCache(config=model.config)
        self.cached = {cache_keyword(model): self.cache}
        with torch.inference_mode():
            if decisions is None:
                model(prompt, **self.cached, logits_to_keep=last_position())
            else:
                with force_decisions(model, decisions):
                    model(prompt, **self.cached, logits_to_keep=last_position())

    @torch.inference_mode()
    def __call__(self) -> None:
        token = self.prompt[:, -1:]
        for _ in range(self.tokens):
            token = self.model(token, **self.cached, logits_to_keep=last_position()).logits.argmax(-1)
        self.cache.crop(-self.tokens)


@torch.inference_mode()
def _prefill(model: Any, prompt: Tensor) -> None:
    model(prompt, **{cache_keyword(model): DynamicCache(config=model.config)}, logits_to_keep=last_position())


@torch.inference_mode()
def _generate_compiled(model: Any, prompt: Tensor, tokens: int) -> None:
    settings = CompileConfig(fullgraph=False)
    # transformers compiles on accelerators alone by default.
    settings._compile_all_devices = True  # type: ignore[assignment]
    model.generate(
        prompt, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, cache_implementation="static",
        compile_config=settings,
    )  # fmt: skip


def _tokens(model: Any, batch_size: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, model.config.vocab_size, (batch_size, length), generator=generator).to(model.device)
