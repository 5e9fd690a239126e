"""Routers that leave out what a prompt can spare, learnt from the base model's own text in minutes, without a search.

A few random paths of each prompt are scored; a surrogate predicts from them what any set of blocks costs any prompt,
and with it from which price of a pass on each block is worth leaving out (`supervision.surrogate`). That critical
price is what a router learns to read off its prompt: one training serves all prices.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from ..adapter.router import Windows, window_shares
from ..decisions import EXECUTE, REPEAT, SKIP, Decisions, execute_all
from ..errors import DrLLMError
from ..jobs import job_progress
from ..scoring.plain import Score
from ..scoring.shared_prefix import SharingScorer, SharingSession, score_paths
from ..scoring.shared_prefix.walk import walk
from ..supervision.skip_sets import draw_skip_sets
from ..supervision.surrogate import Array, Surrogate, Tried, critical_prices, nested_sets
from ..tasks import Prompt
from .routers import Weights, fresh_weights

_SINGLES = 26
"""Prompts on which every block is left out alone, to find those that can be spared."""
_TRIED = 160
"""Prompts whose random sets are scored, at most: the surrogate takes as much memory as the square of its paths."""
_MOST_SKIPS = 9
_NEVER = 0.12
"""In loss a pass: the critical price of blocks that no set of a prompt's leaves out, at least."""
_MEAN_SKIPS = (1.2, 3.0, 4.5)
"""Of the paths on policy, a third of the prompts each: routers read states behind skips as well."""
_DEPTHS = (1 / 15, 2 / 15, 4 / 15, 7 / 15, 2 / 3, 13 / 15)
"""Where the surrogate looks at the states of a prompt."""
_SHARPNESS = 4.0
"""Logits for one unit of the logarithm of the price: how sure routers are near their threshold."""
_REPEAT = -10.0
_BUNDLE = 32
_FOLDS = 5


@dataclass(frozen=True)
class SkipTraining:
    """How routers learn critical prices; the surrogate's labels are smooth, so there is little to tune.

    Attributes:
        epochs, batch_size, learning_rate, weight_decay, dropout: of AdamW, and of the router's inputs.
        router_width: of the routers' hidden layer.
        seed: of paths, initial weights and batches.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    router_width: int = 128
    seed: int = 0


def loss_of(score: Score) -> float:
    """How far a path is from the base, in [0, 1]: half by the tokens that differ, half by KL, which is smoother."""
    if score.agreement is None or score.kl is None:
        raise DrLLMError(
            "skips are learnt from the base model's own text, but other prompts were given; use --mode self."
        )
    near = 0.0 if math.isnan(score.kl) else math.exp(-score.kl)
    return 1 - (score.agreement + near) / 2


def learn_skips(
    scorer: SharingScorer,
    prompts: Sequence[Prompt],
    ids: Sequence[str],
    layers: Sequence[int],
    price: float,
    config: SkipTraining | None = None,
    *,
    num_windows: int = 8,
    rms_norm: bool = True,
    console: Console | None = None,
) -> Weights:
    """A stack of routers for the blocks `layers` that skip what is worth skipping at a price.

    Args:
        scorer: of the frozen base model.
        prompts: of the mode "self", with references.
        price: of L block passes, in shares of agreement.

    Raises:
        DrLLMError: prompts of another mode; a model whose blocks cannot be run one by one.
    """
    config = config or SkipTraining()
    blocks = scorer.num_blocks
    candidates = _candidates(scorer, prompts, ids, layers, config.seed, console)
    # Above the price that is asked for, or what is never to be left out would be.
    never = max(_NEVER, 2 * price / blocks)
    looked_at = sorted({*candidates, *(round(depth * blocks) for depth in _DEPTHS)} & set(range(blocks)))
    reading = _Reading(scorer, prompts, looked_at, num_windows, rms_norm, console)

    base, _ = reading.along([execute_all(blocks)] * len(prompts), "reading")
    summary = _summary(base, reading.used, [looked_at.index(round(depth * blocks)) for depth in _DEPTHS])
    # The lowest hashes, so that neither the order of the prompts nor their number chooses.
    rows = sorted(range(len(prompts)), key=lambda row: _hash(ids[row], config.seed))[:_TRIED]
    sets = [draw_skip_sets(candidates, blocks, config.seed, ids[row]) for row in rows]
    scores = _score(scorer, [prompts[row] for row in rows], sets, "random paths", console)
    tried = _tried(rows, sets, scores, candidates)

    prices = _prices(summary, tried, len(candidates), never)
    thresholds = [_price_for(prices, skips) for skips in _MEAN_SKIPS]
    chosen = [
        _path(of_prompt < thresholds[row % len(thresholds)], candidates, blocks) for row, of_prompt in enumerate(prices)
    ]
    behind, found = reading.along(chosen, "on policy")
    again = _tried(range(len(prompts)), [[path] for path in chosen], [[score] for score in found], candidates)
    tried = Tried(*(np.concatenate(pair) for pair in zip(_fields(tried), _fields(again), strict=True)))
    prices = _prices(summary, tried, len(candidates), never)

    places = [looked_at.index(block) for block in candidates]
    features = torch.from_numpy(np.concatenate([base[:, places], behind[:, places]])).transpose(0, 1)
    targets = torch.from_numpy(np.concatenate([prices, prices])).log().float()
    learnt = _train(features, torch.from_numpy(reading.used).repeat(2), targets, config)
    return _as_routers(learnt, candidates, layers, price / blocks, base.shape[-1], config)


def _prices(summary: Array, tried: Tried, candidates: int, never: float) -> Array:
    """The critical prices of all prompts, each by a surrogate that has not seen the prompt's own paths.

    What a path of a few tokens came to is partly luck, and labels that follow it are learnt by heart.
    """
    prices = np.zeros((len(summary), candidates))
    for fold in range(_FOLDS):
        own = np.arange(len(summary)) % _FOLDS == fold
        others = tried.prompts % _FOLDS != fold
        surrogate = Surrogate(summary, Tried(*(values[others] for values in _fields(tried))))
        prices[own] = critical_prices(*nested_sets(surrogate, summary[own], candidates, _MOST_SKIPS), never)
    return prices


def _candidates(
    scorer: SharingScorer,
    prompts: Sequence[Prompt],
    ids: Sequence[str],
    layers: Sequence[int],
    seed: int,
    console: Console | None,
) -> list[int]:
    """The half of the blocks that cost least when left out alone, the cheapest first."""
    blocks = scorer.num_blocks
    rows = sorted(range(len(prompts)), key=lambda row: _hash(ids[row], seed + 1))[:_SINGLES]
    alone = [tuple(SKIP if block == left else EXECUTE for block in range(blocks)) for left in layers]
    scores = _score(scorer, [prompts[row] for row in rows], [alone] * len(rows), "single skips", console)
    costs = np.mean([[loss_of(score) for score in of_prompt] for of_prompt in scores], axis=0)
    return [layers[place] for place in np.argsort(costs, kind="stable")[: max(1, blocks // 2)]]


class _Reading:
    """What the routers read of all prompts along given paths."""

    def __init__(
        self,
        scorer: SharingScorer,
        prompts: Sequence[Prompt],
        blocks: Sequence[int],
        num_windows: int,
        rms_norm: bool,
        console: Console | None,
    ) -> None:
        self.scorer, self.prompts, self.blocks = scorer, prompts, blocks
        self.num_windows, self.rms_norm, self.console = num_windows, rms_norm, console
        self.used = np.zeros(len(prompts), dtype=np.int64)

    def along(self, paths: Sequence[Decisions], job: str) -> tuple[NDArray[np.float32], list[Score]]:
        """The windows' means [N, B, K, d] at the blocks looked at, and the scores of the paths."""
        found: NDArray[np.float32] | None = None
        scores: dict[int, Score] = {}
        order = sorted(range(len(self.prompts)), key=lambda row: self.scorer.length(self.prompts[row]))
        with job_progress(job, "prompts", len(order), console=self.console) as progress:
            for start in range(0, len(order), _BUNDLE):
                rows = order[start : start + _BUNDLE]
                session = self.scorer.begin([self.prompts[row] for row in rows])
                if not isinstance(session, SharingSession):
                    raise DrLLMError(
                        "skips are learnt by running a model block by block, which gives other results than its own "
                        "forward for this model; search paths with drllm search instead."
                    )

                def decide(
                    block: int,
                    places: Sequence[int],
                    hidden: Sequence[Tensor],
                    walkers: Sequence[Sequence[int]],
                    rows: Sequence[int] = rows,
                ) -> list[list[int]]:
                    nonlocal found
                    if block in self.blocks:
                        for place, states in zip(places, hidden, strict=True):
                            whole = torch.ones(1, len(states), dtype=torch.bool, device=states.device)
                            windows = Windows.cut(whole, self.num_windows)
                            means = windows.mean(states[None], self.rms_norm)[0].cpu().numpy()
                            if found is None:
                                found = np.zeros((len(self.prompts), len(self.blocks), *means.shape), dtype=np.float32)
                            found[rows[place], self.blocks.index(block)] = means
                            self.used[rows[place]] = int(windows.used)
                    return [[paths[rows[walker]][block] for walker in group] for group in walkers]

                taken = walk(session, range(len(rows)), decide)
                scores.update(zip(rows, session.score(range(len(rows)), taken), strict=True))
                progress.update(len(scores))
        assert found is not None
        return found, [scores[row] for row in range(len(self.prompts))]


def _score(
    scorer: SharingScorer,
    prompts: Sequence[Prompt],
    paths: Sequence[Sequence[Decisions]],
    job: str,
    console: Console | None,
) -> list[list[Score]]:
    with job_progress(job, "prompts", len(prompts), console=console) as progress:
        show: Callable[[int], None] = progress.update
        return score_paths(scorer, prompts, paths, bundle=_BUNDLE, show=show)


def _summary(means: NDArray[np.float32], used: NDArray[np.int64], places: Sequence[int]) -> Array:
    """[N, d'] of each prompt: at some depths the mean of its windows and the last one, standardised, of length 1."""
    weights = window_shares(torch.from_numpy(used), means.shape[2]).numpy()
    parts = []
    for place in places:
        at = means[:, place].astype(np.float64)
        parts += [np.einsum("nkd,nk->nd", at, weights), at[np.arange(len(at)), used - 1]]
    joined = np.concatenate(parts, axis=1)
    standard = (joined - joined.mean(axis=0)) / (joined.std(axis=0) + 1e-3)
    return np.asarray(standard / math.sqrt(standard.shape[1]))


def _tried(
    rows: Sequence[int],
    paths: Sequence[Sequence[Decisions]],
    scores: Sequence[Sequence[Score]],
    candidates: Sequence[int],
) -> Tried:
    whose = [row for row, of_prompt in zip(rows, paths, strict=True) for _ in of_prompt]
    skipped = [[float(path[block] == SKIP) for block in candidates] for of_prompt in paths for path in of_prompt]
    losses = [loss_of(score) for of_prompt in scores for score in of_prompt]
    return Tried(np.array(whose, dtype=np.int64), np.array(skipped), np.array(losses))


def _fields(tried: Tried) -> tuple[NDArray[np.int64], Array, Array]:
    return tried.prompts, tried.skipped, tried.losses


def _path(skipped: NDArray[np.bool_], candidates: Sequence[int], blocks: int) -> Decisions:
    left_out = {block for block, skip in zip(candidates, skipped.tolist(), strict=True) if skip}
    return tuple(SKIP if block in left_out else EXECUTE for block in range(blocks))


def _price_for(prices: Array, skips: float) -> float:
    """The price at which a mean of `skips` blocks a prompt are left out."""
    return float(np.quantile(prices, min(1.0, skips / prices.shape[1])))


def _hash(name: str, seed: int) -> bytes:
    import hashlib

    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _train(features: Tensor, used: Tensor, targets: Tensor, config: SkipTraining) -> Weights:
    """Routers whose first output is the logarithm of the critical price.

    Inputs are standardised while they are learnt from, and the constants then go into the first layer.

    Args:
        features: float32 [C, N, K, d].
        used: int64 [N].
        targets: float32 [N, C].
    """
    generator = torch.Generator().manual_seed(config.seed)
    count, examples, windows, width = features.shape
    holds = window_shares(used, windows)
    mean = torch.einsum("cnkd,nk->cd", features, holds) / examples
    spread = torch.einsum("cnkd,nk->cd", (features - mean[:, None, None]).square(), holds) / examples
    scale = (spread.sqrt() + 1e-3).reciprocal()
    weights = fresh_weights(count, width, config.router_width, generator)
    weights["up_weight"] = torch.zeros(count, 1, config.router_width)
    weights["up_bias"] = targets.mean(dim=0)[:, None].clone()
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(list(weights.values()), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * math.ceil(examples / config.batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    thresholds = [math.log(_price_for(targets.exp().double().numpy(), skips)) for skips in _MEAN_SKIPS]
    for _ in range(config.epochs):
        for rows in torch.randperm(examples, generator=generator).split(config.batch_size):
            inputs = (features[:, rows] - mean[:, None, None]) * scale[:, None, None]
            kept = torch.rand(inputs.shape, generator=generator) >= config.dropout
            inputs = (inputs * kept / (1 - config.dropout)).flatten(1, 2)
            hidden = torch.baddbmm(weights["down_bias"][:, None], inputs, weights["down_weight"].transpose(1, 2))
            hidden = F.gelu(hidden, approximate="tanh").unflatten(1, (len(rows), -1))
            pooled = torch.einsum("cnkh,nk->cnh", hidden, holds[rows])
            found = torch.einsum("cnh,coh->nc", pooled, weights["up_weight"]) + weights["up_bias"][:, 0]
            wanted = targets[rows]
            loss = F.smooth_l1_loss(found, wanted, beta=0.5)
            for threshold in thresholds:
                # Which side of the thresholds that are used counts more than how far from them.
                skipped = (wanted < threshold).float()
                loss = loss + 0.5 * F.binary_cross_entropy_with_logits(_SHARPNESS * (threshold - found), skipped)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        weights["down_weight"] *= scale[:, None]
        weights["down_bias"] -= torch.einsum("chd,cd->ch", weights["down_weight"], mean)
    return {name: weight.detach() for name, weight in weights.items()}


def _as_routers(
    learnt: Weights, candidates: Sequence[int], layers: Sequence[int], price: float, width: int, config: SkipTraining
) -> Weights:
    """Routers for all of `layers` that skip where the critical price is below `price`; those of others execute."""
    stack = fresh_weights(len(layers), width, config.router_width, torch.Generator().manual_seed(config.seed))
    stack["up_weight"].zero_()
    stack["up_bias"][:] = torch.nn.functional.one_hot(torch.tensor(EXECUTE), 3) * -_REPEAT
    for place, block in enumerate(candidates):
        router = list(layers).index(block)
        stack["down_weight"][router] = learnt["down_weight"][place]
        stack["down_bias"][router] = learnt["down_bias"][place]
        stack["up_weight"][router, SKIP] = -_SHARPNESS * learnt["up_weight"][place, 0]
        stack["up_bias"][router, SKIP] = _SHARPNESS * (math.log(price) - learnt["up_bias"][place, 0])
        stack["up_bias"][router, EXECUTE] = 0.0
        stack["up_bias"][router, REPEAT] = _REPEAT
    return stack
