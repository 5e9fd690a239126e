"""The route of the current sequences: what is prompt, what was decided for it, and what steers the decisions.

Three things that live differently long: `NextCall`, what is known of a call before it reaches the blocks; `Call`, what
the blocks share while one runs; `Route`, what stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..decisions import EXECUTE
from ..errors import DrLLMError
from .batch_decisions import BatchDecisions, BlockDecisions, Cuts
from .config import DrLLMConfig
from .policy import blend, choose_rows
from .router import Router, Windows

if TYPE_CHECKING:
    from .speculation import Speculation

MIXED = "these rows take different paths; run them one at a time or force one path"

RouterInputs = Callable[[int, Tensor, Tensor], None]
"""Called with a block's index, its window means `[batch, windows, width]` float32 and the windows used `[batch]`."""


@dataclass
class NextCall:
    """What the decoder stack cannot see of its next call: said from outside of it by hooks.py, and used once.

    tokens: `[batch, tokens]` ids or `[batch, tokens, width]` embeddings that it will be given; None when not known.
    labels: `[batch, tokens]`, -100 where nothing is scored; routers read what comes before.
    candidate_tokens: how many tokens at the end are guesses of assisted generation.
    generation_mask: `[batch, tokens]`, the padding mask of `generate`.
    logits_to_keep: what `generate` prepared, which its assisted kind changes.
    in_generate: whether the call was prepared for `generate`.
    in_loop_of_generate: whether by its own decoding loop.
    longer_prompt: whether, without a cache, the tokens may be those of a prompt with generated ones behind it.
    """

    tokens: Tensor | None = None
    labels: Tensor | None = None
    candidate_tokens: int = 0
    generation_mask: Tensor | None = None
    logits_to_keep: int | Tensor | None = None
    in_generate: bool = False
    in_loop_of_generate: bool = False
    longer_prompt: bool = False

    def is_for(self, tokens: Any) -> bool:
        """Whether it can be a call with `tokens`, and not one that was prepared and never made."""
        if torch.compiler.is_compiling() or not isinstance(tokens, Tensor) or self.tokens is None:
            return True
        # Prompt tuning gives embeddings for the ids that were prepared, and models give views of them to their stack.
        return tokens.ndim != self.tokens.ndim or tokens.data_ptr() == self.tokens.data_ptr()


@dataclass
class Call:
    """What the blocks share during one forward call of their stack, and nobody after it.

    num_blocks: how many will run; fewer than there are while transformers drafts with an early exit.
    adapter, config: the router adapter in charge; None runs the base model.
    at_prompt: whether decisions are taken in it, or hold from before.
    decisions: these or those.
    noted: those that routers take while every block executes.
    prompt: `[batch, tokens]` bool, true for the tokens that routers may read.
    forced: the decisions of each row that stand in for the routers'.
    passes: how many each row has made so far.
    begins_with: what a longer prompt begins with, where `generate` may send one.
    hidden_states: what enters each block, `[batch, tokens, width]`, when the caller asked for hidden states.
    output_of_each_pass: the option by which the caller asked for outputs that only the rows that run a block have.
    may_run_again: whether checkpointed blocks may be computed again in a backward pass.
    is_over: whether the stack has run; what checkpointed blocks do from then on is to run again.
    entered: of what entered each block at such a prompt, a few values, by which a block that runs again is known.
    cuts, windows: what is computed once for all blocks: arguments cut to rows, the prompt cut into windows.
    thread: in which it runs; kept when it has ended.
    """

    num_blocks: int = 0
    adapter: str | None = None
    config: DrLLMConfig | None = None
    at_prompt: bool = False
    decisions: BatchDecisions | None = None
    noted: BatchDecisions | None = None
    prompt: Tensor | None = None
    forced: list[list[int]] | None = None
    passes: list[int] = field(default_factory=list)
    begins_with: Tensor | None = None
    hidden_states: list[Tensor] | None = None
    output_of_each_pass: str | None = None
    may_run_again: bool = False
    is_over: bool = False
    entered: dict[int, Tensor] = field(default_factory=dict)
    cuts: Cuts = field(default_factory=dict)
    windows: dict[tuple[int, torch.device], Windows] = field(default_factory=dict)
    thread: int = 0

    def decided(self, block: int) -> BlockDecisions:
        """The decisions that hold for `block`."""
        decided = None if self.decisions is None else self.decisions.blocks[block]
        assert decided is not None
        return decided

    def windows_on(self, device: torch.device, num_windows: int) -> Windows:
        """The prompt's windows on a device, cut once."""
        assert self.prompt is not None
        key = (num_windows, device)
        if key not in self.windows:
            self.windows[key] = Windows.cut(self.prompt.to(device), num_windows)
        return self.windows[key]

    def check_outputs(self, otherwise: str) -> None:
        """Refuse outputs that are recorded each time a block runs where not every row runs it as often."""
        if self.output_of_each_pass is not None:
            raise DrLLMError(
                f"{self.output_of_each_pass} returns something for every time that a block has run, so all rows must "
                f"run it alike, but {otherwise}, or leave {self.output_of_each_pass} out."
            )


class Route:
    """Shared by all routed blocks of one model, so that steering works wherever the blocks are.

    A forward call is either the prompt of new sequences, for which decisions are taken, or a continuation, for which
    those of the prompt hold: they are read from the cache, or from here when `generate` runs without one.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Those for all rows, or a list of those of each row; no tensor, so that they can be compiled in.
        self.forced: tuple[int, ...] | list[list[int]] | None = None
        self.observer: RouterInputs | None = None
        # False while decisions are taken for drafting and every block executes; and what came of that.
        self.acts = True
        self.speculation: Speculation | None = None
        # Adapters whose loaded weights have not been checked yet, with the checksum they should have.
        self.unverified: dict[str, str] = {}
        self.next_call = NextCall()
        self.call = Call()
        # Of the last prompt that was processed to its end.
        self.decisions: BatchDecisions | None = None
        self.begins_with: Tensor | None = None

    # A call begins and ends

    def begin(self, call: Call) -> None:
        """Start a forward call of the stack."""
        if not torch.compiler.is_compiling():
            call.thread = get_ident()
        self.call = call

    def begin_prompt(self, prompt: Tensor, tokens: Tensor, *, in_generate: bool, has_cache: bool) -> None:
        """Start new sequences in the current call.

        Args:
            prompt: `[batch, tokens]` bool, true for the tokens that routers may read.
            tokens: `[batch, tokens]` ids or `[batch, tokens, width]` embeddings, what a longer prompt begins with.
            in_generate: whether the call was prepared for `generate`.
            has_cache: whether later calls have a cache to continue.
        """
        call, batch_size = self.call, prompt.shape[0]
        call.at_prompt, call.prompt = True, prompt
        call.begins_with = tokens if in_generate and not has_cache else None
        call.passes = [0] * batch_size
        call.decisions = BatchDecisions(batch_size, call.num_blocks)
        call.noted = None if self.acts else BatchDecisions(batch_size, call.num_blocks)
        call.forced = self._forced_for_batch(batch_size, in_generate, tokens)
        if call.config is None or call.config.layer_budget is None or call.forced is None:
            return
        longest = max(map(sum, call.forced))
        if longest > call.config.layer_budget:
            raise DrLLMError(
                f"the layer budget allows {call.config.layer_budget} block passes, but the forced decisions make "
                f"{longest}; raise the budget or force a shorter path."
            )

    def continues(self, tokens: Tensor) -> bool:
        """Whether these are the tokens of the last prompt with more behind them; `generate` must have made its call."""
        before = self.begins_with
        return (
            before is not None
            and before.shape[0] == tokens.shape[0]
            and before.ndim == tokens.ndim
            and before.shape[1] < tokens.shape[1]
            and torch.equal(before, tokens[:, : before.shape[1]])
        )

    def continue_prompt(self, batch_size: int, decisions: BatchDecisions | None, *, in_generate: bool) -> None:
        """Go on in the current call with sequences whose prompt has been processed.

        Args:
            batch_size: rows of the tokens that were given.
            decisions: those that the cache was filled along; None without a cache.
            in_generate: whether the call was prepared for `generate`.

        Raises:
            DrLLMError: the cache holds another number of rows, or was filled along another route than the forced one.
        """
        call = self.call
        call.forced = self._forced_for_batch(batch_size, in_generate)
        if decisions is None:
            call.decisions = self.decisions
            return
        if decisions.batch_size != batch_size:
            raise DrLLMError(
                f"the cache holds {decisions.batch_size} rows, but {batch_size} rows of tokens were given; repeat or "
                f"select the cache's rows to match."
            )
        call.decisions = decisions
        if call.forced is not None:
            self._check_forced(decisions, call.forced)
        if any(decided is not None and decided.uniform is None for decided in decisions.blocks):
            call.check_outputs(MIXED)

    def _check_forced(self, decisions: BatchDecisions, forced: Sequence[Sequence[int]]) -> None:
        """Refuse forced decisions that a cache was not filled along, before any block writes to it."""
        for block, decided in enumerate(decisions.blocks):
            if isinstance(self.forced, tuple) and decided is not None and decided.uniform == self.forced[block]:
                continue
            wanted = tuple(row[block] for row in forced)
            if decided is not None and decided.values != wanted:
                raise DrLLMError(
                    f"forced decisions must agree with the route that the cache was filled along, but block {block} "
                    f"has {list(decided.values)} in the cache and {list(wanted)} was forced; begin with a new cache."
                )

    def end(self) -> None:
        """The stack has run: keep what its sequences were decided for, and let everything else go."""
        self.check_thread()
        call, self.call = self.call, Call(thread=self.call.thread)
        if not call.at_prompt or call.decisions is None or not call.decisions.complete:
            return
        call.decisions.filled = True
        if call.num_blocks == self.num_blocks:
            self.decisions, self.begins_with = call.noted or call.decisions, call.begins_with
        if call.may_run_again:
            call.hidden_states, call.cuts, call.windows, call.is_over = None, {}, {}, True
            self.call = call

    def abandon(self, call: Call) -> None:
        """The call has failed: whatever it has begun is forgotten, and the last prompt is the one before.

        A call that is over cannot fail any more: torch ends the blocks that it runs again by an exception.
        """
        if self.call is call and not call.is_over and call.thread == get_ident():  # and not another thread's
            self.call, self.next_call = Call(thread=call.thread), NextCall()

    def _forced_for_batch(
        self, batch_size: int, in_generate: bool, tokens: Tensor | None = None
    ) -> list[list[int]] | None:
        if self.forced is None:
            return None
        if isinstance(self.forced, tuple):
            return [list(self.forced)] * batch_size
        rows = self.forced
        copies = batch_size // len(rows)
        if in_generate and copies * len(rows) == batch_size and (tokens is None or _come_in(copies, tokens)):
            # generate repeats every prompt for beams and returned sequences, in this order.
            rows = [row for row in rows for _ in range(copies)]
        if len(rows) != batch_size:
            raise DrLLMError(
                f"forced decisions must be given once for all rows or once per row, but {len(rows)} rows were "
                f"given for a batch of {batch_size}; pass [blocks] or [{batch_size}, blocks] values."
            )
        return rows

    # What is decided

    def decide(
        self, call: Call, block: int, router: Router | None, hidden: Tensor
    ) -> tuple[BlockDecisions, Tensor | None]:
        """Take the decisions of one block for the rows of the prompt.

        Args:
            call: the block's own; another thread may have begun one since.
            block: which one; blocks ask in order.
            router: the active adapter's router of this block; None when it has none.
            hidden: `[batch, tokens, width]`, what enters the block.

        Returns:
            The decisions, and the probabilities `[batch, 3]` they were chosen by; None when they are not the router's.
        """
        assert call.config is not None
        assert call.decisions is not None
        again = _decided_before(call, block, hidden)
        logits: Tensor | None = None
        reads = router is not None and call.forced is None
        if reads or (self.observer is not None and again is None):
            windows = call.windows_on(hidden.device, call.config.num_windows)
            means = windows.mean(hidden, call.config.rms_norm)
            if self.observer is not None and again is None:
                self.observer(block, means, windows.used)
            if router is not None and call.forced is None:
                logits = router(*_beside(router, means, windows.shares))
        probabilities = None if logits is None else blend(logits.softmax(dim=-1), call.config.depth_control)
        if again is not None:
            return again, probabilities
        if call.may_run_again:
            call.entered[block] = _glance(hidden)

        if call.forced is not None:
            values = [row[block] for row in call.forced]
        elif probabilities is None:
            values = [EXECUTE] * hidden.shape[0]
        else:
            values = choose_rows(probabilities, block, self.num_blocks, call.passes, call.config)
        self.check_thread()  # another one had time to begin while the router ran
        call.passes = [made + times for made, times in zip(call.passes, values, strict=True)]
        if call.noted is not None:
            call.noted.decide(block, values)
            values = [EXECUTE] * len(values)
        return call.decisions.decide(block, values), probabilities

    def last(self) -> Tensor:
        """The decisions of the last prompt, `[batch, blocks]` int8 on the CPU."""
        if self.decisions is None:
            raise DrLLMError(
                "last_decisions shows what the last prompt's route was, but no prompt has been processed with the "
                "adapter enabled; call the model or generate first."
            )
        return self.decisions.tensor()

    def check_thread(self) -> None:
        """Refuse a second call at the same time, which would take this one's route for its own.

        But for the backward pass: checkpointed blocks run again in its own threads.
        """
        if torch.compiler.is_compiling() or self.call.thread == get_ident():
            return
        if torch._C._current_graph_task_id() == -1:  # how torch's own checkpointing tells
            raise DrLLMError(
                "a model with routers runs one call at a time, because its blocks share the route of the prompt, but "
                "two threads called it at once; hold a lock around each call of the model or of generate, or give each "
                "thread a copy.deepcopy of it."
            )

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of the model carries what steers it, not the sequences it was last run on.
        return {**Route(self.num_blocks).__dict__, "forced": self.forced, "unverified": self.unverified}


def _decided_before(call: Call, block: int, hidden: Tensor) -> BlockDecisions | None:
    """What was decided the first time, where a checkpointed block runs again in the backward pass."""
    decided = None if call.decisions is None else call.decisions.blocks[block]
    if decided is not None and block in call.entered:
        glance = _glance(hidden)
        before = call.entered[block]
        if glance.shape != before.shape or not torch.allclose(glance, before, 0.05, 0.001, equal_nan=True):
            raise DrLLMError(
                f"a checkpointed block runs again for the last forward call alone, but block {block} was to run "
                f"again for an earlier one; call backward() after each forward call, or let the checkpointing lie "
                f"inside the routed blocks, as gradient_checkpointing_enable() does."
            )
    return decided


def _glance(hidden: Tensor) -> Tensor:
    """A few values of what enters a block, `[batch, 8]` float32: enough to tell one call from another."""
    return hidden.detach()[:, -1, :8].float().clone()


def _come_in(copies: int, tokens: Tensor) -> bool:
    """Whether every row stands there so many times, one after the other."""
    groups = tokens.unflatten(0, (-1, copies))
    return copies == 1 or bool((groups == groups[:, :1]).all())


def _beside(router: Router, *tensors: Tensor) -> list[Tensor]:
    """What a router reads, moved to its device: the block before may lie on another one."""
    device = router.up.weight.device
    return [tensor.to(device) if device.type != "meta" else tensor for tensor in tensors]
