"""The decoding loop that `generate(custom_generate=speculate)` runs: draft, verify, keep what stands."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList, cache_utils
from transformers.cache_utils import StaticLayer
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ...decisions import EXECUTE, SKIP
from ...errors import DrLLMError
from ..batch_decisions import BatchDecisions
from ..cache import RoutedEntry, check_base_route, find_cache, has_tokens, routed_entries
from ..layer import routed_layers
from ..route import Route
from .acceptance import accept, choose
from .draft import DraftLength, Price, Speculation
from .uneven_rows import Rows, can_move

# The common base class since transformers 5.23.
QUANTIZED: Any = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)
MOST_DRAFTED = 20
"""Tokens a round, where `num_assistant_tokens` of the generation configuration does not say: transformers' default."""


def speculate(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: Any = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Generate what the base model would, with fewer passes of all its blocks.

    To be given to `generate`: `model.generate(**inputs, custom_generate=drllm_adapter.speculate)`. The prompt is
    processed by all blocks while the routers decide. Then the blocks of that route - a repeated block runs once; in a
    batch, a block runs that any row's route runs - propose tokens, and one pass of all blocks accepts or replaces them.
    Greedily the tokens are the base model's, drawn ones have its distribution, both as far as the rounding of a pass
    over several tokens agrees with that of a pass over one. `num_assistant_tokens` of the generation configuration
    bounds the drafted tokens of a round.

    Returns:
        As `generate`: `[batch, tokens]` ids, or a `GenerateDecoderOnlyOutput` with scores and logits as asked for; its
        cache can be continued, and is None for several rows, which end at different places.

    Raises:
        DrLLMError: what cannot be done exactly, by name: beams, no cache, a static, quantized or offloaded cache, a
            cache of several rows, recurrent states that cannot be taken back, attentions or hidden states as outputs.
    """
    layers = routed_layers(model)
    route = layers[0].route
    if layers[0].active_router_adapter is None:
        raise DrLLMError(
            "lossless decoding drafts along a router adapter's route, but none is active; enable it or choose it with "
            "set_adapter."
        )
    cache = _checked_cache(model_kwargs, generation_config, logits_processor, len(input_ids))
    streamer = _streamer_of_generate() if streamer is None else streamer
    with torch.no_grad():
        # The prompt's decisions are taken while all blocks run.
        turn = has_tokens(cache)
        if turn:
            check_base_route(cache)
        decisions = _decisions_of_earlier_prompt(route, len(input_ids)) if turn else None
        with _every_block(route, forced=not turn):
            outputs = model._prefill(input_ids, generation_config, model_kwargs)
        if decisions is None:
            decisions = route.last()
        if not cache.is_croppable:
            raise DrLLMError(
                f"lossless decoding takes rejected tokens back, but the recurrent states of a {type(model).__name__} "
                f"cannot be; generate without custom_generate."
            )
        routed_entries(cache, route.num_blocks, len(input_ids))
        cache.activate_past_recording()
        route.speculation = done = Speculation(verifications=1)
        decoder = _Decoder(
            model, route, cache, decisions, logits_processor, stopping_criteria, generation_config,
            _Streamed(streamer, input_ids.shape[1]), done,
        )  # fmt: skip
        with _every_block(route, forced=False), model._optimize_model_for_decode():
            return decoder.run(input_ids, outputs.logits[:, -1:], model_kwargs)


class _Decoder:
    """One call of `speculate`, after its prompt.

    Args:
        decisions: `[batch, blocks]` int8, the routes to draft along.
        done: what is counted.
    """

    def __init__(
        self,
        model: Any,
        route: Route,
        cache: Cache,
        decisions: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamed: "_Streamed",
        done: Speculation,
    ) -> None:
        self.model, self.cache, self.done = model, cache, done
        self.routes = decisions != SKIP
        self.processors, self.criteria, self.config, self.streamed = processors, criteria, config, streamed
        self.do_sample = bool(config.do_sample)
        self.ends_rows = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        most = config.num_assistant_tokens
        self.length = DraftLength(MOST_DRAFTED if most is None else int(most))
        self.price = Price(model, routed_layers(model))
        self.movable = can_move(cache)
        self.growing = [True] * len(decisions)
        # Where each row was told to stop, in tokens; without an end-of-text token all go on until the last one is.
        self.stopped: list[int | None] = [None] * len(decisions)
        self.sequences: list[Tensor] = [torch.empty(0)] * len(decisions)
        self.scores: list[list[Tensor]] | None = self._kept(config.output_scores)
        self.logits: list[list[Tensor]] | None = self._kept(config.output_logits)

    def _kept(self, wanted: bool | None) -> list[list[Tensor]] | None:
        return [[] for _ in self.growing] if wanted and self.config.return_dict_in_generate else None

    def run(self, input_ids: Tensor, logits: Tensor, arguments: dict[str, Any]) -> Tensor | GenerateDecoderOnlyOutput:
        """Generate after a prompt of which the whole model gave `logits` `[batch, 1, vocabulary]`."""
        rows = Rows(self.model, input_ids, arguments, int(self.cache.get_seq_length()))
        tokens, counts = self._keep(rows, logits, _Draft(input_ids.new_empty(len(input_ids), 0)))
        rows.ids = torch.cat([rows.ids, tokens], dim=1)
        self._end_rows(rows, counts)
        while any(self.growing):
            draft = self._draft(rows)
            tokens, counts = self._keep(rows, self._verify(rows, draft.tokens), draft)
            rows.extend(tokens, counts, self.growing, self.cache)
            self._end_rows(rows, counts)
        return self._result()

    def _draft(self, rows: Rows) -> "_Draft":
        """Tokens along the routes of the rows, as many as seem worth their price."""
        growing = [row for row, grows in enumerate(self.growing) if grows]
        runs: list[bool] = self.routes[growing].any(dim=0).tolist()
        price = self.price(runs)
        draft = _Draft(rows.ids[:, :0])
        room = self.config.max_length - 1 - rows.ids.shape[1]
        if room < 1 or not self.length.begins(price):
            return draft
        cache = _along(self.cache, runs, rows.filled, len(rows.ids))
        draft.sure = {row: [] for row in growing}
        while True:
            inputs = rows.inputs(draft.tokens, 1, cache)
            logits = self.model(**inputs, return_dict=True).logits[:, -1:]
            scores = self._processed(rows, draft.tokens, logits)[:, 0]
            tokens, probabilities = choose(scores, self.do_sample)
            draft.add(tokens, probabilities if self.do_sample else None)
            for row, sure in zip(growing, probabilities[growing].amax(dim=-1).tolist(), strict=True):
                draft.sure[row].append(sure)
            self.done.draft_passes += 1
            self.done.price += (price - self.done.price) / self.done.draft_passes
            drafted = draft.tokens.shape[1]
            if drafted >= room or not self.length.goes_on(list(draft.sure.values()), price):
                break
        for entry, run in zip(_entries(self.cache), runs, strict=True):
            if run:
                entry.crop(-drafted)
        return draft

    def _verify(self, rows: Rows, drafted: Tensor) -> Tensor:
        """Logits of the whole model, `[batch, n + 1, vocabulary]`: for each drafted token and the one after them."""
        new = drafted.shape[1] + 1
        self.done.verifications += 1
        logits: Tensor = self.model(**rows.inputs(drafted, new, self.cache), return_dict=True).logits
        return logits[:, -new:]

    def _processed(self, rows: Rows, drafted: Tensor, logits: Tensor) -> Tensor:
        """What `generate` chooses the next tokens by: logits `[batch, n, vocabulary]` of the last n tokens, processed.

        A processor may go by how long a row is, so it is shown every row at its own length.
        """
        # As generate has them: copied, so that the logits of the whole prompt are not kept.
        scores = logits.to(torch.float32, copy=True)
        if not self.processors:
            return scores
        ids = torch.cat([rows.ids, drafted], dim=1)
        ends = range(ids.shape[1] - logits.shape[1] + 1, ids.shape[1] + 1)
        for place, end in enumerate(ends):
            before = scores[:, place].clone()
            for start, which in self._by_start(rows).items():
                seen: Any = ids[:, start:end]
                scores[which, place] = self.processors(seen, before.clone())[which]
        return scores

    def _by_start(self, rows: Rows) -> dict[int, list[int]]:
        """The growing rows that begin at the same slot."""
        starts: dict[int, list[int]] = {}
        for row, grows in enumerate(self.growing):
            if grows:
                starts.setdefault(rows.starts[row], []).append(row)
        return starts

    def _keep(self, rows: Rows, logits: Tensor, draft: "_Draft") -> tuple[Tensor, list[int]]:
        """What stands of a draft: tokens `[batch, n + 1]`, and how many of them for each row."""
        scores = self._processed(rows, draft.tokens, logits)
        tokens, accepted = accept(draft.tokens, draft.distributions, scores, self.do_sample)
        numbers: list[int] = accepted.tolist()
        for row, sure in draft.sure.items():
            self.length.observe(sure, numbers[row])
            self.done.drafted += len(sure)
            self.done.accepted += numbers[row]
        if not self.movable:
            # All rows take as many as the one that accepted fewest.
            fewest = min(number for number, grows in zip(numbers, self.growing, strict=True) if grows)
            numbers = [fewest] * len(numbers)
        counts = self._until_stopped(rows, tokens, [number + 1 for number in numbers])
        self._record(self.scores, scores, counts)
        self._record(self.logits, logits, counts)
        return tokens, counts

    def _until_stopped(self, rows: Rows, tokens: Tensor, counts: list[int]) -> list[int]:
        """How many of the tokens each row takes: the stopping criteria see them one after the other, as always."""
        ids = torch.cat([rows.ids, tokens], dim=1)
        most = max(count for count, grows in zip(counts, self.growing, strict=True) if grows)
        stops = torch.zeros(len(ids), most, dtype=torch.bool, device=ids.device)
        for place in range(most):
            for start, which in self._by_start(rows).items():
                seen = ids[:, start : rows.ids.shape[1] + place + 1]
                stops[which, place] = self.criteria(seen, None).to(stops.device)[which]
        for row, verdicts in enumerate(stops.tolist()):
            if self.growing[row] and self.stopped[row] is None and True in verdicts[: counts[row]]:
                count = verdicts.index(True) + 1
                self.stopped[row] = rows.length(row) + count
                if self.ends_rows:
                    counts[row] = count
        return [count if grows else 0 for count, grows in zip(counts, self.growing, strict=True)]

    def _end_rows(self, rows: Rows, counts: list[int]) -> None:
        """Note which rows have all their tokens, and stream what all rows have."""
        self.done.tokens += sum(counts)
        known = [stopped for stopped in self.stopped if stopped is not None]
        together = max(known) if len(known) == len(self.stopped) else self.config.max_length
        for row, grows in enumerate(self.growing):
            until = self.stopped[row] if self.ends_rows else together
            if grows and until is not None and rows.length(row) >= until:
                self.growing[row] = False
                self.sequences[row] = rows.tokens(row)[:until].clone()
        if any(self.growing):
            for row, count in enumerate(counts):
                if count and not self.growing[row]:
                    rows.retire(row)
        self.streamed.put([rows.tokens(row) if grows else sequence
                           for row, (grows, sequence) in enumerate(zip(self.growing, self.sequences, strict=True))],
                          self.growing, self.config._pad_token_tensor)  # fmt: skip

    def _record(self, kept: list[list[Tensor]] | None, values: Tensor, counts: list[int]) -> None:
        if kept is not None:
            for row, count in enumerate(counts):
                kept[row].extend(values[row, :count].float())

    def _result(self) -> Tensor | GenerateDecoderOnlyOutput:
        self.streamed.end()
        for entry in _entries(self.cache):
            for layer in entry.passes:
                if hasattr(layer, "record_past"):
                    layer.record_past = False
        sequences = _padded(self.sequences, self.config._pad_token_tensor)
        if not self.config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(
            sequences=sequences,  # type: ignore[arg-type]
            scores=_by_step(self.scores),  # type: ignore[arg-type]
            logits=_by_step(self.logits),  # type: ignore[arg-type]
            past_key_values=self.cache if len(sequences) == 1 else None,
        )


class _Draft:
    """Proposed tokens.

    Attributes:
        tokens: `[batch, n]`.
        distributions: `[batch, n, vocabulary]` that they were drawn from; None where none was drawn.
        sure: for each growing row, the probability of the likeliest token at each place.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.distributions: Tensor | None = None
        self.sure: dict[int, list[float]] = {}

    def add(self, tokens: Tensor, distribution: Tensor | None) -> None:
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        if distribution is not None:
            more = distribution[:, None]
            self.distributions = more if self.distributions is None else torch.cat([self.distributions, more], dim=1)


class _Streamed:
    """Hands a streamer what all rows have, step by step as `generate` does."""

    def __init__(self, streamer: Any, length: int) -> None:
        self._streamer, self._length = streamer, length

    def put(self, rows: Sequence[Tensor], growing: Sequence[bool], padding: Tensor | None) -> None:
        if self._streamer is None:
            return
        unfinished = [len(row) for row, grows in zip(rows, growing, strict=True) if grows]
        until = min(unfinished) if unfinished else max(map(len, rows))
        for place in range(self._length, until):
            step = [row[place] if place < len(row) else padding for row in rows]
            self._streamer.put(torch.stack([token.cpu() for token in step if token is not None]))
        self._length = until

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.end()


@contextmanager
def _every_block(route: Route, *, forced: bool) -> Iterator[None]:
    """Let routers decide, or forced decisions stand for theirs, while every block executes."""
    before = route.acts, route.forced
    route.acts, route.forced = False, route.forced if forced else None
    try:
        yield
    finally:
        route.acts, route.forced = before


def _along(cache: Cache, runs: Sequence[bool], filled: int, batch_size: int) -> Cache:
    """The same cache for a call in which only some blocks run: the others' keys and values are left alone."""
    route = BatchDecisions(batch_size, len(runs))
    layers: list[Any] = []
    for block, (entry, run) in enumerate(zip(_entries(cache), runs, strict=True)):
        route.decide(block, (EXECUTE if run else SKIP,) * batch_size)
        layers.append(copy.copy(entry) if run else type(entry)(entry.blank()))
        if run:
            layers[block].route = route
        else:
            layers[block].start(route, block)
            layers[block].skip(filled)
    route.filled = True
    draft = copy.copy(cache)
    draft.layers = layers
    return draft


def _entries(cache: Cache) -> list[RoutedEntry]:
    """Of a cache that routed blocks have filled."""
    return list(cache.layers)  # type: ignore[arg-type]


def _decisions_of_earlier_prompt(route: Route, batch_size: int) -> Tensor:
    """Of a cache that is continued: forced ones, or those of the last prompt."""
    if isinstance(route.forced, tuple):
        return torch.tensor(route.forced, dtype=torch.int8).expand(batch_size, -1)
    decisions = route.last()
    if len(decisions) != batch_size:
        raise DrLLMError(
            f"lossless decoding goes on along the routes of the last prompt, but that had {len(decisions)} rows and "
            f"the cache has {batch_size}; begin with a new cache or force decisions."
        )
    return decisions


def _checked_cache(
    arguments: dict[str, Any], config: GenerationConfig, processors: LogitsProcessorList, batch_size: int
) -> Cache:
    """The cache of a call that can be done exactly."""
    cache = find_cache((), arguments)
    layers: list[Any] = [] if cache is None else [entry for each in cache.layers for entry in (each, *_inside(each))]
    refused = {
        "beams (num_beams)": (config.num_beams or 1) > 1,
        "classifier-free guidance (guidance_scale)": any(
            isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor) for each in processors
        ),
        "output_attentions": bool(config.return_dict_in_generate and config.output_attentions),
        "output_hidden_states": bool(config.return_dict_in_generate and config.output_hidden_states),
        "a call without a cache": cache is None,
        "a static cache": any(isinstance(layer, StaticLayer) for layer in layers),
        "a quantized cache": any(isinstance(layer, QUANTIZED) for layer in layers),
        "an offloaded cache": bool(getattr(cache, "offloading", False)),
        "a given cache of several rows": batch_size > 1 and bool(getattr(cache, "_is_user_defined", False)),
    }
    for name, asked in refused.items():
        if asked:
            raise DrLLMError(
                f"lossless decoding takes tokens back from a dynamic cache and picks them one sequence a row, so it "
                f"cannot do {name}; leave that out, or generate without custom_generate."
            )
    assert cache is not None
    return cache


def _inside(entry: Any) -> list[Any]:
    return [entry.blank(), *entry.passes] if isinstance(entry, RoutedEntry) else []


def _streamer_of_generate() -> Any:
    """The streamer that `generate` was given. It streams the prompt, but hands a callable no streamer (transformers
    5.18 to 5.23), and whoever reads from that would wait for ever."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "generate" and "streamer" in frame.f_locals:
            return frame.f_locals["streamer"]
        frame = frame.f_back
    return None


def _padded(rows: Sequence[Tensor], padding: Tensor | None) -> Tensor:
    """`[batch, longest]`."""
    value = 0 if padding is None else int(padding)
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _by_step(kept: list[list[Tensor]] | None) -> tuple[Tensor, ...] | None:
    """For every step `[batch, vocabulary]`; zeros for rows that had ended."""
    if kept is None:
        return None
    return nn.utils.rnn.pad_sequence([torch.stack(row) for row in kept], batch_first=True).unbind(dim=1)
