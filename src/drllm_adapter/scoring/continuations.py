"""What a model predicts of answers to prompts, when the routers may read the prompts alone.

The prompt runs first, so that decisions are taken from it; its cache then continues with every answer. Models that keep
recurrent states (state spaces, linear attention) run each answer behind its prompt once more instead, along the same
route: not all of them can go on with several tokens at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..adapter.cache import has_states
from ..adapter.calling import cache_keyword, last_position
from ..adapter.layer import routed_layers
from ..adapter.steering import force_decisions, last_decisions
from ..decisions import Decisions, execute_all

Tokens = Sequence[int]


def pad_left(rows: Sequence[Tokens], padding: int, device: torch.device) -> dict[str, Tensor]:
    """Ids, mask and positions `[batch, tokens]`, padded on the left so that every row ends at the same place."""
    width = max(len(row) for row in rows)
    input_ids = torch.tensor([[*[padding] * (width - len(row)), *row] for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    inputs = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


class Predicted(NamedTuple):
    """A continuation of one of the prompts, and what predicts it.

    logits: those of every token, in parts `[tokens, vocabulary]`, one behind the other.
    """

    prompt: int
    tokens: Tokens
    logits: list[Tensor]

    def log_probabilities(self) -> Tensor:
        """`[tokens, vocabulary]` float32, of each token given those before it."""
        return torch.cat(self.logits).log_softmax(dim=-1, dtype=torch.float32)


def log_likelihoods(predicted: Sequence[Predicted]) -> list[float]:
    """Of each continuation, with one transfer from the device for all of them."""
    return _of_parts(predicted, lambda part, target: part.float().log_softmax(dim=-1).gather(1, target[:, None]).sum())


def are_greedy(predicted: Sequence[Predicted]) -> list[bool]:
    """Whether every token of a continuation is the likeliest, with one transfer for all continuations."""
    misses = _of_parts(predicted, lambda part, target: (part.argmax(dim=-1) != target).sum())
    return [missed == 0 for missed in misses]


def _of_parts(predicted: Sequence[Predicted], read: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """The sum over a continuation's parts of what is read from their logits and tokens."""
    if not predicted:
        return []
    parts = [part for item in predicted for part in item.logits]
    tokens = torch.tensor([token for item in predicted for token in item.tokens], device=parts[0].device)
    targets = tokens.split([len(part) for part in parts])
    values = iter(torch.stack([read(*pair) for pair in zip(parts, targets, strict=True)]).tolist())
    return [sum(next(values) for _ in item.logits) for item in predicted]


@torch.inference_mode()
def predict_continuations(
    model: Any,
    prompts: Sequence[Tokens],
    continuations: Sequence[Sequence[Tokens]],
    *,
    padding: int,
    decisions: Sequence[Decisions] | None = None,
) -> tuple[list[Predicted], list[Decisions]]:
    """The logits from which every token of every continuation is predicted; the prompts run as one batch.

    Args:
        model: a causal language model with a router adapter.
        prompts, continuations: token ids; `continuations[i]` are those of `prompts[i]`.
        padding: id to fill up rows with.
        decisions: the path of each prompt; None lets the routers decide.

    Returns:
        The continuations in order, and the decisions that ran for each prompt; none of these where the adapter is
        disabled.
    """
    inputs = pad_left(prompts, padding, model.device)
    cache = DynamicCache(config=model.config.get_text_config())
    without_cache = has_states(cache)
    cached: dict[str, Any] = {"use_cache": False} if without_cache else {cache_keyword(model): cache}
    with forced(model, decisions):
        first = model(**inputs, **cached, logits_to_keep=last_position()).logits[:, -1:]
    is_routed = routed_layers(model)[0].active_router_adapter is not None
    ran = [tuple(row) for row in last_decisions(model).tolist()] if is_routed else []
    pairs = [(row, tokens) for row, group in enumerate(continuations) for tokens in group]
    longer = [(row, tokens) for row, tokens in pairs if len(tokens) > 1]
    later: Iterator[Tensor] = iter(())
    if longer and without_cache:
        with forced(model, [ran[row] for row, _ in longer] if ran else None):
            later = _run_again(model, prompts, longer, padding)
    elif longer:
        later = _go_on(model, inputs["attention_mask"], cached, cache, longer, padding)
    predicted = [Predicted(row, tokens, [first[row]]) for row, tokens in pairs]
    for item in predicted:
        if len(item.tokens) > 1:
            item.logits.append(next(later))
    return predicted, ran


def forced(model: Any, decisions: Sequence[Decisions] | None) -> AbstractContextManager[None]:
    """`force_decisions`, one path a row, or nothing when the routers decide."""
    return nullcontext() if decisions is None else force_decisions(model, torch.tensor(decisions, dtype=torch.int8))


@contextmanager
def as_base(model: Any) -> Iterator[None]:
    """Every block executes, whatever the routers and the layer budget say."""
    layers = routed_layers(model)
    config = layers[0].active_config
    budget = None if config is None else config.layer_budget
    if config is not None:
        config.layer_budget = None
    try:
        with force_decisions(model, execute_all(len(layers))):
            yield
    finally:
        if config is not None:
            config.layer_budget = budget


def _go_on(
    model: Any,
    prompt_mask: Tensor,
    cached: dict[str, Any],
    cache: DynamicCache,
    pairs: Sequence[tuple[int, Tokens]],
    padding: int,
) -> Iterator[Tensor]:
    """The logits behind the first one, from the cache that holds the prompts."""
    rows = torch.tensor([row for row, _ in pairs], device=prompt_mask.device)
    cache.batch_select_indices(rows)
    # The last token is only predicted, never read.
    read = [torch.tensor(tokens[:-1]) for _, tokens in pairs]
    input_ids = nn.utils.rnn.pad_sequence(read, batch_first=True, padding_value=padding).to(rows.device)
    steps = torch.arange(input_ids.shape[1], device=rows.device)
    lengths = torch.tensor([len(tokens) for tokens in read], device=rows.device)
    mask = prompt_mask[rows]
    logits = model(
        input_ids=input_ids,
        attention_mask=torch.cat([mask, (steps < lengths[:, None]).to(mask.dtype)], dim=1),
        position_ids=mask.sum(dim=1, keepdim=True) + steps,
        **cached,
    ).logits
    return iter([logits[index, : len(tokens)] for index, tokens in enumerate(read)])


def _run_again(
    model: Any, prompts: Sequence[Tokens], pairs: Sequence[tuple[int, Tokens]], padding: int
) -> Iterator[Tensor]:
    """The logits behind the first one, without a cache."""
    inputs = pad_left([[*prompts[row], *tokens[:-1]] for row, tokens in pairs], padding, model.device)
    logits = model(**inputs, use_cache=False).logits
    return iter([logits[index, 1 - len(tokens) :] for index, (_, tokens) in enumerate(pairs)])
