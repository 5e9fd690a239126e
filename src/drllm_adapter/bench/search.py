"""Paths scored together against the published way: one question, one path, one `generate` call at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console

from ..adapter.config import DrLLMConfig
from ..adapter.stack import find_stack
from ..scoring import Scorer
from ..tasks import Prompt
from .models import mixed_path, share, unroll
from .timing import Comparison, compare


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
