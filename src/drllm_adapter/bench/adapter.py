"""What a trained adapter saves in time: routed against base on the prompts that it is evaluated on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache

from ..adapter.calling import cache_keyword, last_position
from ..adapter.steering import last_decisions
from ..errors import DrLLMError
from ..scoring.continuations import pad_left
from ..tasks import Prompt
from .models import without_routers
from .timing import Comparison, compare


@dataclass(frozen=True)
class AdapterSpeed:
    """Speed at one batch size.

    Attributes:
        prompts: how many, in batches of `batch_size`.
        mean_passes: of the routed model over the prompts; the base makes `num_blocks`.
        batch_passes: passes that some row of a batch makes, summed over the blocks, mean over the batches: where
            reading the weights takes the time, as in decoding, this is what a batch pays for.
        prefill: the prompts, all batches.
        decode: `decode_tokens` tokens after each of them.
    """

    batch_size: int
    prompts: int
    prompt_tokens: float
    decode_tokens: int
    num_blocks: int
    mean_passes: float
    batch_passes: float
    prefill: Comparison
    decode: Comparison

    @property
    def passes_ratio(self) -> float:
        """Passes of the base over those of the routed model: the speed-up if nothing but block passes took time."""
        return self.num_blocks / self.mean_passes

    def to_json(self) -> dict[str, Any]:
        tokens = self.prompts * self.decode_tokens
        batches = -(-self.prompts // self.batch_size)
        return {
            **asdict(self),
            "passes_ratio": self.passes_ratio,
            "prefill_seconds": {"routed": self.prefill.seconds / batches, "base": self.prefill.other_seconds / batches},
            "tokens_per_second": {
                "routed": tokens / self.decode.seconds,
                "base": tokens / self.decode.other_seconds,
            },
        }


def bench_adapter(
    routed: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    batch_sizes: Sequence[int] = (1, 16),
    decode_tokens: int = 16,
    repetitions: int = 5,
    console: Console,
) -> list[AdapterSpeed]:
    """Prefill and decoding, routed against base, at every batch size.

    Args:
        routed: a `PeftModel` with an active router adapter.
        decode_tokens: after each prompt.
        repetitions: interleaved; medians are reported.

    Raises:
        DrLLMError: a prompt does not leave room for the tokens in the model's positions.
    """
    base = without_routers(routed)
    tokens = [tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"] for prompt in prompts]
    limit = getattr(routed.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, tokens)) + decode_tokens
    if limit is not None and longest > limit:
        raise DrLLMError(
            f"a prompt and {decode_tokens} decoded tokens must fit the model's {limit} positions, but the longest "
            f"needs {longest}; lower --decode-tokens or leave that question out."
        )
    results = []
    for batch_size in batch_sizes:
        batches = [tokens[start : start + batch_size] for start in range(0, len(tokens), batch_size)]
        ours, other = _Run(routed, batches), _Run(base, batches)
        with console.status(f"batch {batch_size}"):
            prefill = compare("prefill", f"batch {batch_size}", ours.prefill, other.prefill, repetitions)
            decode = compare(
                "decode", f"batch {batch_size}", partial(ours.decode, decode_tokens),
                partial(other.decode, decode_tokens), repetitions,
            )  # fmt: skip
        decisions = ours.decisions()
        results.append(
            AdapterSpeed(
                batch_size=batch_size,
                prompts=len(tokens),
                prompt_tokens=sum(map(len, tokens)) / len(tokens),
                decode_tokens=decode_tokens,
                num_blocks=decisions[0].shape[1],
                mean_passes=sum(int(rows.sum()) for rows in decisions) / len(tokens),
                batch_passes=sum(int(rows.amax(dim=0).sum()) for rows in decisions) / len(decisions),
                prefill=prefill,
                decode=decode,
            )
        )
    return results


def table(results: Sequence[AdapterSpeed]) -> Table:
    """The speeds for people."""
    shown = Table("batch", "passes", "ratio of passes", "prefill", "ratio", "decode, tokens/s", "ratio",
                  title="Routed against base (ratios above 1: routed is faster)", title_justify="left")  # fmt: skip
    for item in results:
        plain = item.to_json()
        prefill, speed = plain["prefill_seconds"], plain["tokens_per_second"]
        shown.add_row(
            str(item.batch_size),
            f"{item.mean_passes:.2f} of {item.num_blocks} (batch: {item.batch_passes:.2f})",
            f"{item.passes_ratio:.2f}",
            f"{1000 * prefill['routed']:.1f} against {1000 * prefill['base']:.1f} ms",
            f"{item.prefill.ratio:.2f}",
            f"{speed['routed']:.1f} against {speed['base']:.1f}",
            f"{item.decode.ratio:.2f}",
        )
    return shown


class _Run:
    """Batches of prompts through one model: prefill alone, or decoding after a prefill that is done once."""

    def __init__(self, model: Any, batches: Sequence[Sequence[list[int]]]) -> None:
        self.model = model
        self.keyword = cache_keyword(model)
        self.inputs = [pad_left(batch, 0, model.device) for batch in batches]
        self._caches: list[DynamicCache] = []
        self._first: list[Tensor] = []

    @torch.inference_mode()
    def prefill(self) -> None:
        """All batches, each into a new cache."""
        self._caches, self._first = [], []
        for inputs in self.inputs:
            cache = DynamicCache(config=self.model.config.get_text_config())
            logits = self.model(**inputs, **{self.keyword: cache}, logits_to_keep=last_position()).logits
            self._caches.append(cache)
            self._first.append(logits[:, -1:].argmax(dim=-1))

    @torch.inference_mode()
    def decisions(self) -> list[Tensor]:
        """`[batch, blocks]` of every batch."""
        taken = []
        for inputs in self.inputs:
            self.model(**inputs, use_cache=False, logits_to_keep=last_position())
            taken.append(last_decisions(self.model))
        return taken

    @torch.inference_mode()
    def decode(self, tokens: int) -> None:
        """Greedy tokens after every batch; the caches are as before afterwards."""
        for inputs, cache, token in zip(self.inputs, self._caches, self._first, strict=True):
            mask, positions = inputs["attention_mask"], inputs["position_ids"][:, -1:]
            for step in range(1, tokens + 1):
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                logits = self.model(
                    input_ids=token, attention_mask=mask, position_ids=positions + step, **{self.keyword: cache}
                ).logits
                token = logits[:, -1:].argmax(dim=-1)
            cache.crop(-tokens)
