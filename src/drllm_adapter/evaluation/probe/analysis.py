"""The statistics of a probe: shares of the variance, what the prompt predicts, and what that is worth."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...decisions import passes
from ...errors import DrLLMError
from .measurements import Floats, Measurements
from .report import BASE, BY_PROMPT, BY_TASK, HINDSIGHT, STATIC, Effect, Estimate, Policy, ProbeReport

_PRICES = (0.0, *np.geomspace(0.02, 3.0, 30))
_FOLDS = 5
_BOOTSTRAP = 2000
_Z = 1.959964  # 97.5 % quantile of the normal distribution


def analyse(measured: Measurements, *, price: float = 0.4, seed: int = 0) -> ProbeReport:
    """The three shares and the gain to expect.

    Predictions are five-fold cross-validated over questions: a ridge regression of every path's effect on the states,
    its penalty chosen by leaving one out inside the training questions. Policies choose, for each question of the
    held-out fold, the path of highest predicted worth among the scored ones; what they are credited with is that
    path's measured outcome. Intervals are of 2,000 paired bootstrap draws of questions, those of the variance shares
    of the jackknife.
    """
    num_blocks = len(measured.paths[0])
    count = len(measured.groups)
    names, tasks = np.unique(np.array(measured.groups), return_inverse=True)
    several = len(names) > 1
    cost = np.array([passes(path) / num_blocks for path in measured.paths])
    predictions = {**_predictions(measured, tasks, seed), HINDSIGHT: measured.probability}

    def outcome(name: str, at_price: float) -> tuple[Floats, Floats, Floats]:
        """Right answers, p(right) and cost of each question under a policy."""
        rows = np.arange(count)
        chosen = (
            np.zeros(count, dtype=np.int64) if name == BASE else (predictions[name] - at_price * cost).argmax(axis=1)
        )
        return measured.correct[rows, chosen], measured.probability[rows, chosen], cost[chosen]

    listed = [BASE, STATIC, *([BY_TASK] if several else []), BY_PROMPT, HINDSIGHT]
    outcomes = {name: outcome(name, price) for name in listed}
    worth = {name: likely - price * spent for name, (_, likely, spent) in outcomes.items()}
    resampled = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_BOOTSTRAP) / count

    def mean(values: Floats) -> Estimate:
        return _with_interval(float(values.mean()), resampled @ values)

    return ProbeReport(
        num_blocks=num_blocks,
        questions={str(name): int((tasks == place).sum()) for place, name in enumerate(names)},
        paths=len(measured.paths),
        effects=_effects(measured),
        **_variance_shares(measured.probability, tasks),
        by_task=_explained(measured, predictions, BY_TASK, resampled) if several else None,
        by_prompt=_explained(measured, predictions, BY_PROMPT, resampled),
        price=price,
        static_path=measured.paths[int((measured.probability.mean(axis=0) - price * cost).argmax())],
        policies=[
            Policy(name, float(right.mean()), float(likely.mean()), float(spent.mean()) * num_blocks,
                   float(worth[name].mean()))
            for name, (right, likely, spent) in outcomes.items()
        ],
        gain=mean(worth[BY_PROMPT] - worth[STATIC]),
        gain_over_task=mean(worth[BY_PROMPT] - worth[BY_TASK]) if several else None,
        accuracy_gain=mean(outcomes[BY_PROMPT][0] - outcomes[BASE][0]),
        curves={
            name: [(float(right.mean()), float(spent.mean()) * num_blocks)
                   for right, _, spent in (outcome(name, at_price) for at_price in _PRICES)]
            for name in listed if name != BASE
        },
    )  # fmt: skip


def _effects(measured: Measurements) -> list[Effect]:
    effects = []
    for place, (block, decision) in enumerate(measured.edits):
        scored = ~np.isnan(measured.edit_probability[:, place])
        if scored.sum() < 2:
            continue
        changes = [
            edited[scored, place] - base[scored, 0]
            for edited, base in (
                (measured.edit_probability, measured.probability),
                (measured.edit_correct, measured.correct),
            )
        ]
        effects.append(Effect(block, decision, int(scored.sum()), *(_normal(change) for change in changes)))
    return effects


def _variance_shares(probability: Floats, tasks: NDArray[np.int64]) -> dict[str, Any]:
    """Shares of the variance within questions, from how the path effects of different questions go together.

    The product of two questions' effects, averaged over paths and over pairs of different questions, has no part of
    what is one question's own: pairs of different tasks estimate what all have in common, pairs of one task that and
    what the task has in common.
    """
    effects = probability - probability.mean(axis=1, keepdims=True)
    own = (effects**2).sum(axis=1)
    members = np.eye(tasks.max() + 1)[tasks]

    def shares(kept: Floats) -> Floats:
        weighted = members * kept[:, None]
        sums = weighted.T @ effects
        own_of_task, sizes = weighted.T @ own, weighted.sum(axis=0)
        same = ((sums**2).sum() - own_of_task.sum()) / (sizes * (sizes - 1)).sum()
        total = own_of_task.sum() / sizes.sum()
        if len(sizes) == 1:
            return np.array([same, 0.0, total - same]) / total
        among = sizes.sum() ** 2 - (sizes**2).sum()
        different = ((sums.sum(axis=0) ** 2).sum() - (sums**2).sum()) / among
        return np.array([different, same - different, total - same]) / total

    count = len(tasks)
    if not own.sum():
        raise DrLLMError(
            "paths must change the probability of some answer, but no path changes any; give other questions."
        )
    found = shares(np.ones(count))
    left_out = np.array([shares(1.0 - np.eye(count)[place]) for place in range(count)])
    half = _Z * np.sqrt((count - 1) / count * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    static, task, question = (
        (float(value), float(value - width), float(value + width)) for value, width in zip(found, half, strict=True)
    )
    return {"static": static, "task": task if members.shape[1] > 1 else None, "question": question}


def _predictions(measured: Measurements, tasks: NDArray[np.int64], seed: int) -> dict[str, Floats]:
    """`[Q, P]` of p(right answer) along every path by each policy, from the other folds' questions alone."""
    # The level of a question does not matter for the choice of its path; effects against its own mean do.
    effects = measured.probability - measured.probability.mean(axis=1, keepdims=True)
    states = measured.states - measured.states.mean(axis=0)
    states /= np.maximum(states.std(axis=0), 1e-6)
    kernel = states @ states.T / states.shape[1]
    count = len(tasks)
    folds = np.random.default_rng(seed).permutation(count) % _FOLDS
    found = {name: np.zeros_like(effects) for name in (STATIC, BY_TASK, BY_PROMPT)}
    for fold in range(_FOLDS):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        static = effects[train].mean(axis=0)
        found[STATIC][test] = static
        for task in np.unique(tasks):
            of_task = train[tasks[train] == task]
            found[BY_TASK][test[tasks[test] == task]] = effects[of_task].mean(axis=0) if len(of_task) else static
        found[BY_PROMPT][test] = static + _ridge(
            kernel[np.ix_(train, train)], effects[train] - static, kernel[np.ix_(test, train)]
        )
    return found


def _ridge(kernel: Floats, targets: Floats, new: Floats) -> Floats:
    """Kernel ridge regression of `targets` `[n, P]`, for new rows; the penalty with the least leave-one-out error.

    The leave-one-out residual is the residual divided by one minus the leverage, so all penalties cost one
    eigendecomposition. The largest penalty predicts nothing.
    """
    values, vectors = np.linalg.eigh(kernel)
    values = np.maximum(values, 0)
    projected = vectors.T @ targets
    best: tuple[float, Floats] | None = None
    for penalty in np.geomspace(1e-4, 1e6, 31) * values.max():
        shrink = values / (values + penalty)
        residual = targets - vectors @ (shrink[:, None] * projected)
        leverage = (vectors**2) @ shrink
        error = float(((residual / np.maximum(1 - leverage, 1e-9)[:, None]) ** 2).sum())
        if best is None or error < best[0]:
            best = error, vectors @ (projected / (values + penalty)[:, None])
    assert best is not None
    return new @ best[1]


def _explained(measured: Measurements, predictions: dict[str, Floats], name: str, resampled: Floats) -> Estimate:
    """Share of the held-out variance beyond the static prediction that a policy's predictions explain."""
    effects = measured.probability - measured.probability.mean(axis=1, keepdims=True)
    static = ((effects - predictions[STATIC]) ** 2).sum(axis=1)
    left = ((effects - predictions[name]) ** 2).sum(axis=1)
    return _with_interval(1 - left.sum() / static.sum(), 1 - (resampled @ left) / (resampled @ static))


def _with_interval(value: float, draws: Floats) -> Estimate:
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(value), float(low), float(high)


def _normal(values: Floats) -> Estimate:
    mean, half = float(values.mean()), _Z * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half
