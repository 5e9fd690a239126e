"""The route of the current sequences: what is prompt, what was decided for it, and what steers the decisions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from ..decisions import EXECUTE, REPEAT, SKIP
from ..errors import DrLLMError
from .cache import check_kept, check_route, routes_of
from .config import DEPTH_CONTROL_AS_TRAINED, DrLLMConfig
from .router import Router, Windows
from .rows import RowDecisions

if TYPE_CHECKING:
    from .layer import RoutedLayer
    from .speculation import Speculation

MIXED = "these rows take different paths; run them one at a time or force one path"

RouterInputs = Callable[[int, Tensor, Tensor], None]
"""Called with a block's index, its window means `[batch, windows, width]` float32 and the windows used `[batch]`."""


@dataclass
class NextCall:
    """What the decoder stack cannot see of its next call: said from outside of it by hooks.py, and used once.

    labels: `[batch, tokens]`, -100 where nothing is scored; routers read what comes before.
    candidate_tokens: how many tokens at the end are guesses of assisted generation.
    generation_mask: `[batch, tokens]`, the padding mask of `generate`.
    logits_to_keep: what `generate` prepared, which its assisted kind changes.
    in_generate: whether the call was prepared for `generate`.
    in_loop_of_generate: whether by its own decoding loop.
    longer_prompt: whether, without a cache, the tokens may be those of a prompt with generated ones behind it.
    """

    labels: Tensor | None = None
    candidate_tokens: int = 0
    generation_mask: Tensor | None = None
    logits_to_keep: int | Tensor | None = None
    in_generate: bool = False
    in_loop_of_generate: bool = False
    longer_prompt: bool = False


class Route:
    """Shared by all routed blocks of one model, so that steering works wherever the blocks are.

    A forward call is either the prompt of new sequences, for which decisions are taken, or a continuation, for which
    those of the prompt hold: they are read from the cache, or from here when `generate` runs without one.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Blocks of the current forward call: fewer where `assistant_early_exit` drafts with the first ones.
        self.running = num_blocks
        self.layers: list[RoutedLayer] = []
        # Those for all rows, or a list of those of each row; no tensor, so that they can be compiled in.
        self.forced: tuple[int, ...] | list[list[int]] | None = None
        self.observer: RouterInputs | None = None
        # False while decisions are taken for drafting and every block executes; and what came of that.
        self.acts = True
        self.speculation: Speculation | None = None
        self.at_prompt = False
        # The router adapter in charge of the current forward call; None runs the base model.
        self.active_adapter: str | None = None
        # The thread of the current forward call: the state here is that of one call.
        self.thread = 0
        # Of the block that decided last, `[batch, 3]`; None when its decisions were not its router's.
        self.probabilities: Tensor | None = None
        # Adapters whose loaded weights have not been checked yet, with the checksum they should have.
        self.unverified: dict[str, str] = {}
        self.prepared: NextCall | None = None
        self.next_call = NextCall()
        # What enters each block, `[batch, tokens, width]`, when the caller asked for hidden states.
        self.hidden_states: list[Tensor] | None = None
        # The option by which the caller asked for outputs that only the rows that run a block have.
        self.output_of_each_pass: str | None = None
        # Of a call that continues sequences: at which blocks every row executes, so that these need not find out.
        self.executes: list[bool] | None = None
        self._decisions: list[RowDecisions | None] = [None] * num_blocks
        self._prompt: Tensor | None = None
        self._begins_with: Tensor | None = None
        self._windows: dict[tuple[int, torch.device], Windows] = {}
        self._passes: list[int] = []
        self._forced_rows: list[list[int]] | None = None

    # Which tokens the routers may read

    def begin_prompt(self, prompt: Tensor, tokens: Tensor, *, in_generate: bool) -> None:
        """Start new sequences.

        Args:
            prompt: `[batch, tokens]` bool, true for the tokens that routers may read.
            tokens: `[batch, tokens]` ids or `[batch, tokens, width]` embeddings, what a longer prompt begins with.
            in_generate: whether the call was prepared for `generate`.
        """
        self.at_prompt, self.executes = True, None
        self._prompt, self._begins_with = prompt, tokens if in_generate else None
        self._windows.clear()
        self._passes = [0] * prompt.shape[0]
        self._decisions = [None] * self.num_blocks
        self._forced_rows = self._forced_for_batch(prompt.shape[0], in_generate, tokens)
        self._check_budget()

    def _check_budget(self) -> None:
        config = self.layers[0].active_config
        if config is None or config.layer_budget is None or self._forced_rows is None:
            return
        longest = max(map(sum, self._forced_rows))
        if longest > config.layer_budget:
            raise DrLLMError(
                f"the layer budget allows {config.layer_budget} block passes, but the forced decisions make {longest}; "
                f"raise the budget or force a shorter path."
            )

    def continues(self, tokens: Tensor) -> bool:
        """Whether these are the tokens of the last prompt with more behind them; `generate` must have made its call."""
        before = self._begins_with
        return (
            before is not None
            and before.shape[0] == tokens.shape[0]
            and before.ndim == tokens.ndim
            and before.shape[1] < tokens.shape[1]
            and torch.equal(before, tokens[:, : before.shape[1]])
        )

    def continue_prompt(self, batch_size: int, cache: Cache | None, *, in_generate: bool) -> None:
        """Go on with sequences whose prompt has been processed."""
        self.at_prompt = False
        self._forced_rows = self._forced_for_batch(batch_size, in_generate)
        self.executes = None
        if cache is None:
            return
        routes = routes_of(cache)
        if (None in routes or len(routes) < self.running) and any(decisions is not None for decisions in routes):
            check_kept(cache)
            raise DrLLMError(
                f"a cache must hold a whole prompt to be continued, but {routes.count(None)} of its {len(routes)} "
                f"layers hold nothing of the one that the others were filled with: its call was interrupted or "
                f"refused; begin with a new cache."
            )
        self.executes = self._where_all_execute(routes, batch_size)
        if self.forced is not None and self._forced_rows is not None:
            check_route(routes, self.forced if isinstance(self.forced, tuple) else self._forced_rows, batch_size)
        if self.output_of_each_pass is not None and any(
            taken is not None and taken.uniform is None for taken in routes
        ):
            self.check_outputs(MIXED)

    def _where_all_execute(self, routes: Sequence[RowDecisions | None], batch_size: int) -> list[bool] | None:
        """The blocks that have nothing to do but to run; None when each has to look for itself."""
        if self.hidden_states is not None or isinstance(self.forced, list) or len(routes) < self.running:
            return None
        all_execute = [
            decisions is not None and decisions.uniform == EXECUTE and decisions.batch_size == batch_size
            for decisions in routes
        ]
        if self.forced is None:
            return all_execute
        return [here and forced == EXECUTE for here, forced in zip(all_execute, self.forced, strict=False)]

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

    def decide(self, layer: "RoutedLayer", config: DrLLMConfig, router: Router | None, hidden: Tensor) -> RowDecisions:
        """Take the decisions of one block for the rows of the prompt.

        Args:
            layer: the block; blocks ask in order.
            config: the active adapter's, for windows, depth control and budget.
            router: the active adapter's router of this block; None when it has none.
            hidden: `[batch, tokens, width]`, what enters the block.
        """
        logits, self.probabilities = None, None
        if self.observer is not None or (router is not None and self._forced_rows is None):
            windows = self._windows_on(hidden.device, config.num_windows)
            means = windows.mean(hidden, config.rms_norm)
            if self.observer is not None:
                self.observer(layer.index, means, windows.used)
            if router is not None and self._forced_rows is None:
                logits = router(*_beside(router, means, windows.shares))

        if self._forced_rows is not None:
            decisions = [row[layer.index] for row in self._forced_rows]
        elif logits is None:
            decisions = [EXECUTE] * hidden.shape[0]
        else:
            decisions = self._choose(layer, config, logits)
        self.check_thread()  # another one had time to begin while the router ran
        for row, times in enumerate(decisions):
            self._passes[row] += times
        self._decisions[layer.index] = RowDecisions(decisions)
        return self.decided(layer.index) if self.acts else RowDecisions((EXECUTE,) * len(decisions))

    def decided(self, block: int) -> RowDecisions:
        """The decisions taken for `block` when its prompt was processed."""
        decisions = self._decisions[block]
        assert decisions is not None
        return decisions

    def last(self) -> Tensor:
        """The decisions of the last prompt, `[batch, blocks]` int8 on the CPU."""
        if any(decisions is None for decisions in self._decisions):
            raise DrLLMError(
                "last_decisions shows what the last prompt's route was, but no prompt has been processed with the "
                "adapter enabled; call the model or generate first."
            )
        taken = [decisions.decisions for decisions in self._decisions if decisions is not None]
        return torch.tensor(taken, dtype=torch.int8).T.contiguous()

    def check_thread(self) -> None:
        """Refuse a second call at the same time, which would take this one's route for its own.

        But for the backward pass: checkpointed blocks run again in its own threads.
        """
        if torch.compiler.is_compiling() or self.thread == get_ident():
            return
        if torch._C._current_graph_task_id() == -1:  # how torch's own checkpointing tells
            raise DrLLMError(
                "a model with routers runs one call at a time, because its blocks share the route of the prompt, but "
                "two threads called it at once; hold a lock around each call of the model or of generate, or give each "
                "thread a copy.deepcopy of it."
            )

    def check_outputs(self, otherwise: str) -> None:
        """Refuse outputs that are recorded each time a block runs where not every row runs it as often."""
        if self.output_of_each_pass is not None:
            raise DrLLMError(
                f"{self.output_of_each_pass} returns something for every time that a block has run, so all rows must "
                f"run it alike, but {otherwise}, or leave {self.output_of_each_pass} out."
            )

    def _windows_on(self, device: torch.device, num_windows: int) -> Windows:
        assert self._prompt is not None
        key = (num_windows, device)
        if key not in self._windows:
            self._windows[key] = Windows.cut(self._prompt.to(device), num_windows)
        return self._windows[key]

    def _choose(self, layer: "RoutedLayer", config: DrLLMConfig, logits: Tensor) -> list[int]:
        self.probabilities = blend(logits.softmax(dim=-1), config.depth_control)
        rows: list[list[float]] = self.probabilities.tolist()
        decisions = []
        for row, probabilities in enumerate(rows):
            if probabilities[0] != probabilities[0]:
                raise DrLLMError(
                    f"the router of block {layer.index} must give finite logits, but it gave NaN; the adapter's "
                    f"weights or the base model's hidden states are not finite: load the adapter again."
                )
            routed = config.routed_blocks(self.num_blocks)
            limit = pass_limit(config.layer_budget, self._passes[row], layer.index, routed, self.num_blocks)
            decisions.append(choose(probabilities, limit))
        return decisions

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of the model carries what steers it, not the sequences it was last run on.
        fresh = Route(self.num_blocks).__dict__
        return {**fresh, "layers": self.layers, "forced": self.forced, "unverified": self.unverified}


def _come_in(copies: int, tokens: Tensor) -> bool:
    """Whether every row stands there so many times, one after the other."""
    groups = tokens.unflatten(0, (-1, copies))
    return copies == 1 or bool((groups == groups[:, :1]).all())


def _beside(router: Router, *tensors: Tensor) -> list[Tensor]:
    """What a router reads, moved to its device: the block before may lie on another one."""
    device = router.up.weight.device
    return [tensor.to(device) if device.type != "meta" else tensor for tensor in tensors]


def choose(probabilities: Sequence[float], limit: int) -> int:
    """The likeliest decision of at most `limit` passes; the first of equals wins: a tie executes."""
    return max((item for item in (EXECUTE, SKIP, REPEAT) if item <= limit), key=probabilities.__getitem__)


def pass_limit(layer_budget: int | None, passes: int, block: int, routed: Sequence[int], num_blocks: int) -> int:
    """How many passes the budget leaves a block, when those before it made `passes`.

    Later blocks keep a reserve: one pass for each without a router, and for the others their even share of the
    budget, at most one pass each. So a tight budget thins out the whole depth instead of cutting off its end.
    """
    if layer_budget is None:
        return REPEAT
    unrouted = num_blocks - len(routed)
    routed_later = sum(later > block for later in routed)
    unrouted_later = num_blocks - 1 - block - routed_later
    share = routed_later * (layer_budget - unrouted) // len(routed)
    return layer_budget - passes - unrouted_later - min(routed_later, share)


def blend(probabilities: Tensor, depth_control: float) -> Tensor:
    """The paper's depth control: `[..., 3]` router probabilities moved towards one decision.

    Linear between the anchors all-skip (p = -1), the router as trained (-0.5), all-execute (0.5), all-repeat (1).
    """
    if depth_control == DEPTH_CONTROL_AS_TRAINED:
        return probabilities
    one_hot = torch.eye(3, dtype=probabilities.dtype, device=probabilities.device)
    anchors = [
        (-1.0, one_hot[SKIP]),
        (DEPTH_CONTROL_AS_TRAINED, probabilities),
        (0.5, one_hot[EXECUTE]),
        (1.0, one_hot[REPEAT]),
    ]
    for (low, start), (high, end) in pairwise(anchors):
        if depth_control <= high:
            share = (depth_control - low) / (high - low)
            return torch.lerp(start.expand_as(probabilities), end.expand_as(probabilities), share)
    raise AssertionError("depth_control is checked to be in [-1, 1]")
