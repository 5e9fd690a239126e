"""When lossless decoding pays: acceptance, what a drafted token costs, what verifying several costs, on this device."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import DynamicCache

from ..adapter.calling import cache_keyword, last_position
from ..adapter.layer import routed_layers
from ..adapter.speculation import Speculation, last_speculation, speculate
from ..adapter.stack import find_stack
from ..adapter.steering import force_decisions, last_decisions, set_layer_budget
from ..errors import DrLLMError
from ..scoring.continuations import pad_left
from ..tasks import Prompt
from .models import random_model, sizes_of, without_routers
from .timing import now

MOST_VERIFIED = 8
"""Drafted tokens that a verification is timed with at most."""
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Costs:
    """Of decoding on one device, as multiples of a token of the base model.

    Attributes:
        context: tokens in the cache.
        blocks, drafting: of the model, and those that a drafted token runs.
        seconds: of a token of the base model.
        draft: a drafted token.
        verify: for each n from 0, a pass of all blocks over n drafted tokens and the one before them; the first is 1.
    """

    context: int
    blocks: int
    drafting: float
    seconds: float
    draft: float
    verify: tuple[float, ...]

    def speed(self, acceptance: float) -> tuple[float, int]:
        """The best speed against the base, and the number of drafted tokens that gives it (0: do not draft).

        Each drafted token is taken to be accepted with the same chance, whatever became of those before it.
        """
        speeds = [_tokens(acceptance, n) / (n * self.draft + cost) for n, cost in enumerate(self.verify)]
        return max(speeds), speeds.index(max(speeds))

    def needed(self) -> float | None:
        """The least acceptance, in hundredths, with which drafting is faster than the base; None where it never is."""
        return next((share / 100 for share in range(101) if self.speed(share / 100)[1] > 0), None)


@dataclass(frozen=True)
class Apart:
    """Where a lossless answer leaves the base's.

    Attributes:
        prompt: which one, from 0.
        token: of the answer, from 0.
        gap: by how much the base's token had the larger logit, in one pass of the base over all before it. Near the
            rounding of a logit it was a tie, which another order of the same sums decides otherwise.
    """

    prompt: int
    token: int
    gap: float


@dataclass(frozen=True)
class LosslessSpeed:
    """Prompts answered by the base model and losslessly, in batches of similar length.

    Attributes:
        prompts: how many answers.
        batch_size: prompts at a time.
        apart: answers that are not the base's, token for token.
        tokens: generated for all prompts.
        drafted, accepted: tokens.
        draft_passes, verifications: forward passes along the routes and of all blocks, each for a batch.
        seconds, base_seconds: for all prompts, their prefill included.
        passes: mean of the routes that were drafted along.
    """

    prompts: int
    batch_size: int
    apart: tuple[Apart, ...]
    tokens: int
    drafted: int
    accepted: int
    draft_passes: int
    verifications: int
    seconds: float
    base_seconds: float
    passes: float

    @property
    def acceptance(self) -> float:
        """Accepted of the drafted tokens."""
        return self.accepted / max(1, self.drafted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "acceptance": self.acceptance, "ratio": self.base_seconds / self.seconds}


def _tokens(acceptance: float, drafted: int) -> float:
    """Expected tokens of a verification: the accepted ones and one of the whole model's."""
    return math.fsum(acceptance**n for n in range(drafted + 1))


@torch.inference_mode()
def bench_lossless(
    routed: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int,
    repetitions: int,
    hidden: bool,
    batch_size: int = 1,
) -> tuple[LosslessSpeed, Costs]:
    """Answer prompts by the base model and losslessly in turns, then time what a token costs along their routes.

    Args:
        routed: a `PeftModel` with an active router adapter.
        new_tokens: of each answer, at most.
        hidden: without a progress bar.
        batch_size: prompts at a time, padded on the left.

    Raises:
        DrLLMError: a prompt does not leave room for the answer in the model's positions.
    """
    base = without_routers(routed)
    limit = getattr(routed.config.get_text_config(), "max_position_embeddings", None)
    tokens = [tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"] for prompt in prompts]
    longest = max(map(len, tokens)) + new_tokens
    if limit is not None and longest > limit:
        raise DrLLMError(
            f"a prompt and {new_tokens} new tokens must fit the model's {limit} positions, but the longest needs "
            f"{longest}; lower --max-new-tokens or leave that question out."
        )
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": padding}
    order = sorted(range(len(tokens)), key=lambda row: len(tokens[row])) if batch_size > 1 else list(range(len(tokens)))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    seconds, base_seconds, apart = 0.0, 0.0, list[Apart]()
    done, routes = Speculation(), dict[int, Tensor]()
    for place, rows in enumerate(track([batches[0], *batches], "answers", transient=True, disable=hidden)):
        inputs = pad_left([tokens[row] for row in rows], padding, routed.device)
        inputs.pop("position_ids")
        runs: list[Callable[[], Tensor]] = [
            partial(base.generate, **inputs, **settings),
            partial(routed.generate, **inputs, **settings, custom_generate=speculate),
        ]
        times, answers = [0.0, 0.0], [torch.empty(0), torch.empty(0)]
        for which in (0, 1) if place % 2 else (1, 0):
            start = now()
            answers[which] = runs[which]()[:, inputs["input_ids"].shape[1] :]
            times[which] = now() - start
        if place:  # the first one warms up
            base_seconds, seconds = base_seconds + times[0], seconds + times[1]
            apart += find_apart(base, [tokens[row] for row in rows], rows, answers[0], answers[1], padding)
            done = done + last_speculation(routed)
            routes.update(zip(rows, last_decisions(routed).clamp(max=1), strict=True))
    speed = LosslessSpeed(
        prompts=len(tokens),
        batch_size=batch_size,
        apart=tuple(apart),
        tokens=done.tokens,
        drafted=done.drafted,
        accepted=done.accepted,
        draft_passes=done.draft_passes,
        verifications=done.verifications,
        seconds=seconds,
        base_seconds=base_seconds,
        passes=torch.stack(list(routes.values())).sum(dim=1, dtype=torch.float).mean().item(),
    )
    rows = batches[len(batches) // 2]
    together = torch.stack([routes[row] for row in rows]).amax(dim=0)  # a block drafts if any row's route runs it
    return speed, _measure(base, routed, [tokens[rows[-1]]] * len(rows), together, repetitions)


def find_apart(
    base: Any, prompts: Sequence[list[int]], numbers: Sequence[int], expected: Tensor, found: Tensor, padding: int
) -> list[Apart]:
    """Answers `[batch, tokens]` to some prompts that are not the base's."""
    width = max(expected.shape[1], found.shape[1])
    expected, found = (nn.functional.pad(each, (0, width - each.shape[1]), value=padding) for each in (expected, found))
    apart = []
    for row in (expected != found).any(dim=1).nonzero().flatten().tolist():
        token = int((expected[row] != found[row]).nonzero()[0])
        ids = torch.tensor([[*prompts[row], *expected[row, :token].tolist()]], device=base.device)
        logits = base(ids, logits_to_keep=last_position()).logits[0, -1].float()
        apart.append(Apart(numbers[row], token, (logits[expected[row, token]] - logits[found[row, token]]).item()))
    return apart


def _measure(base: Any, routed: Any, prompts: list[list[int]], route: Tensor, repetitions: int) -> Costs:
    """Time tokens after prompts of one length: n at once by the base model, one along the route."""
    ids = torch.tensor(prompts, device=base.device)
    caches = [DynamicCache(config=model.config.get_text_config()) for model in (base, routed)]
    base(ids, **{cache_keyword(base): caches[0]})

    def step(model: Any, cache: DynamicCache, count: int) -> float:
        new = ids[:, -1:].expand(-1, count)
        start = now()
        model(new, **{cache_keyword(model): cache}).logits[:, -1].argmax(dim=-1).tolist()
        spent = now() - start
        cache.crop(-count)
        return spent

    times: list[list[float]] = [[] for _ in range(MOST_VERIFIED + 1)]
    drafting: list[float] = []
    config = routed_layers(routed)[0].active_config
    budget = None if config is None else config.layer_budget
    set_layer_budget(routed, None)  # a row's; what a batch drafts along is no row's route
    with force_decisions(routed, route):
        routed(ids, **{cache_keyword(routed): caches[1]})
        for cache in caches:
            cache.activate_past_recording()
        for repetition in range(repetitions + 1):
            for count in range(MOST_VERIFIED + 1):
                spent = step(base, caches[0], count + 1)
                if repetition:
                    times[count].append(spent)
            spent = step(routed, caches[1], 1)
            if repetition:
                drafting.append(spent)
    set_layer_budget(routed, budget)
    one = statistics.median(times[0])
    verify = tuple(statistics.median(each) / one for each in times)
    return Costs(ids.shape[1], len(route), float(route.sum()), one, statistics.median(drafting) / one, verify)


@torch.inference_mode()
def costs_of_shape(
    shape: str, skipped: int, *, dtype: torch.dtype, device: str, context: int, repetitions: int, hidden: bool
) -> Costs:
    """What a known shape would cost, from one of its blocks and its head with random weights.

    Args:
        skipped: blocks that a drafted token leaves out.
        context: tokens in the cache.

    Raises:
        DrLLMError: no such shape, or it has no more blocks than are skipped.
    """
    blocks = int(sizes_of(shape)["num_hidden_layers"])
    if not 0 < skipped < blocks:
        raise DrLLMError(
            f"a route must skip some of the shape's {blocks} blocks, but {skipped} was given; set --skip between 1 "
            f"and {blocks - 1}."
        )
    model = random_model(shape, dtype, device, num_hidden_layers=1)
    ids = torch.randint(model.config.vocab_size, (1, context), device=device)
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, logits_to_keep=1)
    spent = {"block": 0.0, "rest": 0.0}
    started = 0.0

    def begin(*_: Any) -> None:
        nonlocal started
        started = now()

    def end(*_: Any) -> None:
        spent["block"] += now() - started

    block = find_stack(model).blocks[0]
    handles = [block.register_forward_pre_hook(begin), block.register_forward_hook(end)]
    inside: list[list[float]] = [[] for _ in range(MOST_VERIFIED + 1)]
    outside: list[list[float]] = [[] for _ in range(MOST_VERIFIED + 1)]
    try:
        for repetition in track(range(repetitions + 1), "passes", transient=True, disable=hidden):
            for count in range(MOST_VERIFIED + 1):
                spent["block"] = 0.0
                start = now()
                model(ids[:, : count + 1], past_key_values=cache)
                whole = now() - start
                cache.crop(-count - 1)
                if repetition:  # the first one warms up
                    inside[count].append(spent["block"])
                    outside[count].append(whole - spent["block"])
    finally:
        for handle in handles:
            handle.remove()
    one_block, rest = statistics.median(inside[0]), statistics.median(outside[0])
    one = blocks * one_block + rest
    verify = tuple(
        (blocks * statistics.median(inner) + statistics.median(outer)) / one
        for inner, outer in zip(inside, outside, strict=True)
    )
    draft = ((blocks - skipped) * one_block + rest) / one
    return Costs(context, blocks, float(blocks - skipped), one, draft, verify)


def costs_table(costs: Costs) -> Table:
    """The costs, and the speed that follows for every acceptance."""
    table = Table("accepted", "speed against the base", "drafted a round",
                  title=f"Lossless decoding with {costs.drafting:g} of {costs.blocks} blocks drafting: a drafted token "
                  f"costs {costs.draft:.2f} of a base token, verifying 4 costs {costs.verify[4]:.2f}",
                  title_justify="left")  # fmt: skip
    for acceptance in ACCEPTANCES:
        speed, drafted = costs.speed(acceptance)
        table.add_row(f"{acceptance:.0%}", f"{speed:.2f}", str(drafted))
    return table


def verdict(costs: Costs, speed: LosslessSpeed | None = None) -> str:
    """In one or two sentences: whether it pays here, and what it would take."""
    needed = costs.needed()
    takes = (
        "no acceptance would make it faster here"
        if needed is None
        else f"it takes an acceptance of {needed:.0%} to be faster than the base"
    )
    if speed is None:
        return f"On this device {takes}."
    same = "all are the base's, token for token"
    if speed.apart:
        gap = max(item.gap for item in speed.apart)
        same = f"{len(speed.apart)} are not the base's, where its two tokens were up to {gap:.2g} apart in its logits"
    ratio = speed.base_seconds / speed.seconds
    pays = "It pays" if ratio > 1 else "It does not pay"
    return (
        f"{speed.prompts} answers; {same}. {speed.acceptance:.0%} of {speed.drafted} drafted tokens were accepted "
        f"in {speed.draft_passes} passes along the route and {speed.verifications} of all blocks; "
        f"{speed.tokens / speed.seconds:.1f} tokens/s against the base's {speed.tokens / speed.base_seconds:.1f} "
        f"({ratio:.2f}). {pays} here: {takes}."
    )


def to_json(costs: Costs, speed: LosslessSpeed | None) -> dict[str, Any]:
    curve = {str(acceptance): costs.speed(acceptance)[0] for acceptance in ACCEPTANCES}
    return {
        "costs": {**asdict(costs), "needed": costs.needed(), "speed_by_acceptance": curve},
        "measured": None if speed is None else speed.to_json(),
    }
