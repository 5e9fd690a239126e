"""The statistics of a probe: where differences lie, what the prompt tells of them, what choosing by it would keep."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..compare import Estimate
from ..contenders import Contender, best_mixture
from ..intervals import paired_bootstrap
from .measurements import Floats, Measurements
from .report import BY_KIND, BY_LOT, BY_PROMPT, HINDSIGHT, STATIC, Block, Point, ProbeReport, Shares

_FOLDS = 5
_BOOTSTRAP = 2000
_PRICES = (0.0, *np.geomspace(1e-4, 0.5, 60))
# Where ways of choosing are compared: so much of the passes is left.
_COMPARED_AT = 0.9


def analyse(measured: Measurements, *, seed: int = 0) -> ProbeReport:
    """Shares of the variance, predictability, and agreement against passes by each way of choosing.

    All ways choose how many of the cheapest blocks to leave out, in one order for all prompts: the same number
    everywhere, one for each kind, one for each prompt. Kinds and prompts are judged by the other four fifths of the
    prompts alone; what is chosen is credited with what was measured. Intervals are bootstrapped over prompts.
    """
    names, kinds = np.unique(np.array(measured.kinds), return_inverse=True)
    several = len(names) > 1
    folds = np.random.default_rng(seed).permutation(len(kinds)) % _FOLDS
    blocks = measured.num_blocks
    target = min(blocks - 1, max(round(_COMPARED_AT * blocks), blocks - measured.nested.shape[1] + 1))
    worth = _worth(measured, kinds, folds)
    if not several:
        del worth[BY_KIND]
    curves = {name: _curve(name, values, measured) for name, values in worth.items()}
    static = curves[STATIC][blocks - target]
    by_lot = best_mixture(curves[STATIC], target)
    compared = {name: _between(points, target) for name, points in curves.items() if name != STATIC}
    log_kl, kernels = measured.log_kl, _kernels(measured)
    return ProbeReport(
        num_blocks=blocks,
        questions={str(name): int((kinds == place).sum()) for place, name in enumerate(names)},
        blocks=[
            Block(block, *(_mean(values[:, block]) for values in (measured.agreement, measured.kl)))
            for block in measured.order
        ],
        shares=_shares(log_kl, kinds),
        by_kind=_explained(log_kl, _by_kind(log_kl, kinds, folds), folds) if several else None,
        by_prompt=_explained(log_kl, _by_prompt(log_kl, kernels, folds), folds),
        passes=target,
        static_path=measured.path(blocks - target),
        points=[Point(name, *_mean(found.each), found.passes)
                for name, found in {STATIC: static, BY_LOT: by_lot, **compared}.items()],
        gains={name: _difference(found, by_lot) for name, found in compared.items()},
        above_static={name: _difference(found, static) for name, found in {BY_LOT: by_lot, **compared}.items()},
        curves={name: [(point.value, point.passes) for point in points] for name, points in curves.items()},
    )  # fmt: skip


# Where differences lie


def _shares(values: Floats, kinds: NDArray[np.int64]) -> Shares:
    """Shares of the variance of `values` `[Q, L]`: of blocks, of prompts, of kind and block together, and the rest.

    Sums of squares of a two-way layout, each less what chance alone puts into it (its degrees of freedom times the
    mean square of the rest), which few prompts of a kind would otherwise pass off as the kind's.
    """
    prompts, blocks = values.shape
    of_block, of_prompt = values.mean(axis=0), values.mean(axis=1, keepdims=True)
    left = values - of_block - of_prompt + values.mean()
    of_kind = np.stack([left[kinds == kind].mean(axis=0) for kind in range(kinds.max() + 1)])
    rest = left - of_kind[kinds]
    groups = len(of_kind)
    sums = {
        "block": (prompts * ((of_block - values.mean()) ** 2).sum(), blocks - 1),
        "prompt": (blocks * ((of_prompt - values.mean()) ** 2).sum(), prompts - 1),
        "kind": ((of_kind[kinds] ** 2).sum(), (groups - 1) * (blocks - 1)),
    }
    chance = (rest**2).sum() / max(1, (prompts - groups) * (blocks - 1))
    total = ((values - values.mean()) ** 2).sum()
    found = {name: max(0.0, float(square - freedom * chance) / total) for name, (square, freedom) in sums.items()}
    return Shares(**found, rest=max(0.0, 1 - sum(found.values())))


# What the kind and the prompt tell


def _by_kind(values: Floats, kinds: NDArray[np.int64], folds: NDArray[np.int64]) -> Floats:
    """`values` `[Q, P]` predicted by the other folds' mean of the kind, drawn to that of all by one prompt's weight."""
    found = np.zeros_like(values)
    for fold in range(_FOLDS):
        train, test = folds != fold, np.flatnonzero(folds == fold)
        everyone = values[train].mean(axis=0)
        for place in test:
            alike = values[train & (kinds == kinds[place])]
            found[place] = (alike.sum(axis=0) + everyone) / (len(alike) + 1)
    return found


def _by_prompt(values: Floats, kernels: Sequence[Floats], folds: NDArray[np.int64]) -> Floats:
    """`values` `[Q, P]` predicted by ridge regression on the prompt; `kernels` are P of `[Q, Q]`, or one for all."""
    found = np.zeros_like(values)
    for fold in range(_FOLDS):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        everyone = values[train].mean(axis=0)
        for column, kernel in enumerate(kernels):
            which = slice(None) if len(kernels) == 1 else slice(column, column + 1)
            targets = (values[train] - everyone)[:, which]
            known, new = kernel[np.ix_(train, train)], kernel[np.ix_(test, train)]
            found[test, which] = everyone[which] + _ridge(known, targets, new)
    return found


def _kernels(measured: Measurements) -> list[Floats]:
    """For each block, products of what enters it between all prompts, features standardised: `[Q, Q]`."""
    kernels = []
    for states in measured.states.astype(np.float64):
        states = states - states.mean(axis=0)
        states = states / np.maximum(states.std(axis=0), 1e-6)
        kernels.append(states @ states.T / states.shape[1])
    return kernels


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


def _explained(values: Floats, predicted: Floats, folds: NDArray[np.int64]) -> Estimate:
    """Share of the variance beyond the blocks' own means that is explained on prompts not seen."""
    means = np.stack([values[folds != fold].mean(axis=0) for fold in range(_FOLDS)])[folds]
    beyond, left = ((values - means) ** 2).sum(axis=1), ((values - predicted) ** 2).sum(axis=1)
    drawn = np.random.default_rng(0).multinomial(len(values), np.full(len(values), 1 / len(values)), size=_BOOTSTRAP)
    low, high = np.quantile(1 - (drawn @ left) / (drawn @ beyond), (0.025, 0.975))
    return float(1 - left.sum() / beyond.sum()), float(low), float(high)


# What choosing would keep


def _worth(measured: Measurements, kinds: NDArray[np.int64], folds: NDArray[np.int64]) -> dict[str, Floats]:
    """`[Q, N + 1]`: what each way of choosing takes the agreement along the nested paths to be."""
    nested = measured.nested
    return {
        STATIC: np.broadcast_to(nested.mean(axis=0), nested.shape),
        BY_KIND: _by_kind(nested, kinds, folds),
        BY_PROMPT: _by_prompt(nested, [np.mean(_kernels(measured), axis=0)], folds),
        HINDSIGHT: nested,
    }


def _curve(name: str, worth: Floats, measured: Measurements) -> list[Contender]:
    """What comes of taking the number of skips of highest worth less a price for each pass, at many prices.

    Of the static way every number of skips is a point: any of them may be mixed with any other.
    """
    skips, rows, blocks = np.arange(worth.shape[1]), np.arange(len(worth)), measured.num_blocks
    if name == STATIC:
        return [Contender(name, measured.nested[:, number], float(blocks - number)) for number in skips]
    points: dict[bytes, Contender] = {}
    for price in _PRICES:
        chosen = (worth + price * skips).argmax(axis=1)
        each = measured.nested[rows, chosen]
        points[chosen.tobytes()] = Contender(name, each, float(blocks - chosen.mean()))
    whole = Contender(name, measured.nested[:, 0], float(blocks))
    deepest = Contender(name, measured.nested[:, -1], float(blocks - skips[-1]))
    return [whole, *points.values(), deepest]


def _between(points: Sequence[Contender], passes: float) -> Contender:
    """The mixture of the two nearest points that makes so many passes.

    The best of all mixtures is partly the luckiest. That is granted to the lot, which the others have to beat.
    """
    below = [point for point in points if point.passes <= passes]
    above = [point for point in points if point.passes >= passes]
    nearest = [max(below, key=lambda point: point.passes), min(above, key=lambda point: point.passes)]
    return best_mixture(nearest, passes)


def _mean(each: Floats) -> Estimate:
    return float(each.mean()), *paired_bootstrap(each, np.zeros_like(each))


def _difference(one: Contender, other: Contender) -> Estimate:
    return one.value - other.value, *paired_bootstrap(one.each, other.each)
