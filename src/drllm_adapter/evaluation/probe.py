"""`drllm probe`: can routers help this model on these questions? Measured before a long search is paid for.

Every question is scored along the same random paths and some of the single edits (one block skipped or repeated).
Routers help when some blocks are nearly free (redundancy), the best path differs between prompts (heterogeneity), and
the prompt's hidden states tell which (predictability); `measure` scores, `analyse` says how much of each there is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from ..adapter.layer import observe_router_inputs
from ..decisions import EXECUTE, REPEAT, SKIP, Decisions, execute_all, passes
from ..engine import SharingScorer
from ..errors import DrLLMError
from ..scoring import Scorer
from ..search import SearchConfig
from ..search.random_paths import RandomPaths
from ..tasks import Prompt

Floats = NDArray[np.float64]

BASE, STATIC, BY_TASK = "base", "best static path", "best path of each task"
BY_PROMPT, HINDSIGHT = "predicted from the prompt", "hindsight (luck included)"
LEAST_QUESTIONS = 20
_PRICES = (0.0, *np.geomspace(0.02, 3.0, 30))
_FOLDS = 5
_BOOTSTRAP = 2000
_LITTLE, _MUCH = 0.01, 0.03
_Z = 1.959964
_BUNDLE = 64


@dataclass(frozen=True)
class Measurements:
    """What was scored.

    Attributes:
        groups: the task of each of Q questions.
        paths: P decisions that every question was scored along; the first is the base model's.
        probability, correct: `[Q, P]`, of the right answer, and whether the model gives it.
        edits: single edits (block, decision), E of them.
        edit_probability, edit_correct: `[Q, E]`, NaN where a question was not scored along an edit.
        states: `[Q, F]`, what the routers read on the base path: the mean over the prompt's windows, all blocks.
    """

    groups: Sequence[str]
    paths: Sequence[Decisions]
    probability: Floats
    correct: Floats
    edits: Sequence[tuple[int, int]]
    edit_probability: Floats
    edit_correct: Floats
    states: Floats


@dataclass(frozen=True)
class Effect:
    """A single edit against the base path, paired: the change of a mean with its 95 % interval (normal).

    Attributes:
        probability, accuracy: the change of p(right answer) and of the share of right answers: value, low, high.
    """

    block: int
    decision: int
    questions: int
    probability: tuple[float, float, float]
    accuracy: tuple[float, float, float]


@dataclass(frozen=True)
class Policy:
    """What a way of choosing among the scored paths would give, on questions it was not made with.

    Attributes:
        worth: mean of p(right answer) - price x passes / L.
    """

    name: str
    accuracy: float
    probability: float
    mean_passes: float
    worth: float


@dataclass(frozen=True)
class ProbeReport:
    """What the probe found; all shares are with 95 % intervals as (value, low, high).

    Attributes:
        questions: number by task.
        effects: of every single edit.
        static, task, question: shares of the variance that paths make within a question: what is the same for all
            questions, what differs between tasks (None with one task), what differs between questions of a task.
        by_task, by_prompt: cross-validated shares of the variance beyond `static` that the task's name (None with one
            task) and the prompt's hidden states predict.
        price: of L passes.
        static_path: the static path of highest worth on all questions.
        policies: base, best static path, best path of each task (with several), predicted from the prompt, hindsight.
        gain: worth of the predicted path minus that of the best static path.
        gain_over_task: the same against the best path of each task; None with one task.
        accuracy_gain: share of right answers, predicted minus base.
        curves: by policy, accuracy and mean passes at different prices.
    """

    num_blocks: int
    questions: dict[str, int]
    paths: int
    effects: list[Effect]
    static: tuple[float, float, float]
    task: tuple[float, float, float] | None
    question: tuple[float, float, float]
    by_task: tuple[float, float, float] | None
    by_prompt: tuple[float, float, float]
    price: float
    static_path: Decisions
    policies: list[Policy]
    gain: tuple[float, float, float]
    gain_over_task: tuple[float, float, float] | None
    accuracy_gain: tuple[float, float, float]
    curves: dict[str, list[tuple[float, float]]]

    @property
    def verdict(self) -> str:
        """One sentence."""
        value, low, _ = self.gain if self.gain_over_task is None else min(self.gain, self.gain_over_task)
        rival = "the best static path" if self.gain_over_task is None else "static paths, one for each task included"
        if value >= _MUCH and low > 0:
            return f"much to gain: paths chosen by the prompt are worth {100 * value:.1f} points more than {rival}."
        if value >= _LITTLE and low > 0:
            return (
                f"something to gain: paths chosen by the prompt are worth {100 * value:.1f} points more than {rival}."
            )
        return f"little to gain: paths chosen by the prompt are not clearly worth more than {rival}."

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}

    def tables(self) -> list[Table]:
        """The report for people."""
        free = Table("single edit", "change of p(right), points", "change of accuracy, points", "n",
                     title="Redundancy: the least and the most harmful edits", title_justify="left")  # fmt: skip
        ranked = sorted(self.effects, key=lambda effect: -effect.probability[0])
        shown = ranked if len(ranked) <= 12 else [*ranked[:8], *ranked[-4:]]
        for effect in shown:
            name = f"{'skip' if effect.decision == SKIP else 'repeat'} {effect.block}"
            free.add_row(name, _points(effect.probability), _points(effect.accuracy), str(effect.questions))
        shares = Table("of the variance that paths make", "share, %", title="Heterogeneity and predictability",
                       title_justify="left")  # fmt: skip
        shares.add_row("the same for all questions (a static path has it)", _percent(self.static))
        if self.task is not None:
            shares.add_row("different between tasks", _percent(self.task))
        shares.add_row("different between questions" + (" of a task" if self.task else ""), _percent(self.question))
        if self.by_task is not None:
            shares.add_row("of the different: predicted by the task's name", _percent(self.by_task))
        shares.add_row("of the different: predicted from the prompt", _percent(self.by_prompt))
        gain = Table("path", "accuracy, %", "p(right), %", "mean passes", "worth, points",
                     title=f"Expected gain (worth = p(right) - {self.price:g} x passes / {self.num_blocks})",
                     title_justify="left")  # fmt: skip
        for policy in self.policies:
            gain.add_row(policy.name, f"{100 * policy.accuracy:.1f}", f"{100 * policy.probability:.1f}",
                         f"{policy.mean_passes:.2f}", f"{100 * policy.worth:.1f}")  # fmt: skip
        gain.add_row("predicted - best static", "", "", "", _points(self.gain))
        if self.gain_over_task is not None:
            gain.add_row("predicted - best of each task", "", "", "", _points(self.gain_over_task))
        gain.add_row("predicted - base", _points(self.accuracy_gain), "", "", "")
        return [free, shares, gain]


def measure(
    scorer: SharingScorer,
    prompts: Sequence[Prompt],
    groups: Sequence[str],
    *,
    paths: int = 24,
    edits: int = 6,
    single_edits: int = 16,
    seed: int = 0,
    show: Callable[[float], None] = lambda done: None,
) -> Measurements:
    """Score every prompt along the base path, the same random paths and some of the single edits.

    Args:
        groups: the task of each prompt.
        paths: random paths of 1 to `edits` edits.
        single_edits: how many of the 2 L single edits a question is scored along; each edit gets as many questions as
            any other, give or take one.
        show: told the share of the scores that is done.

    Raises:
        DrLLMError: too few prompts, or see `SharingScorer.begin`.
    """
    if len(prompts) < LEAST_QUESTIONS:
        raise DrLLMError(
            f"a probe needs at least {LEAST_QUESTIONS} questions to say anything, but {len(prompts)} were given; give "
            f"more of them."
        )
    num_blocks = scorer.num_blocks
    tried = [execute_all(num_blocks), *_random_paths(num_blocks, paths, edits, seed)]
    singles = [(block, decision) for block in range(num_blocks) for decision in (SKIP, REPEAT)]
    share = min(single_edits, len(singles))
    probability, correct = np.zeros((2, len(prompts), len(tried)))
    edit_probability, edit_correct = np.full((2, len(prompts), len(singles)), np.nan)
    states = _states(scorer.plain, prompts)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].text))
    # Dealt like cards along the lengths, so that every edit meets short and long prompts alike.
    dealt = np.random.default_rng(seed).permutation(len(singles))
    hands = {place: dealt[(rank * share + np.arange(share)) % len(singles)] for rank, place in enumerate(order)}
    for start in range(0, len(order), _BUNDLE):
        places = order[start : start + _BUNDLE]
        asked = [(column, row) for column in range(len(tried)) for row in range(len(places))]
        asked += sorted((len(tried) + int(edit), row) for row, place in enumerate(places) for edit in hands[place])
        along = [*tried, *(_edited(num_blocks, *edit) for edit in singles)]
        scores = scorer.begin([prompts[place] for place in places]).score(
            [row for _, row in asked], [along[column] for column, _ in asked]
        )
        for (column, row), score in zip(asked, scores, strict=True):
            # A path along which the model breaks down answers nothing.
            values = (0.0 if math.isnan(score.probability) else score.probability), float(score.correct)
            place = places[row]
            if column < len(tried):
                probability[place, column], correct[place, column] = values
            else:
                edit_probability[place, column - len(tried)], edit_correct[place, column - len(tried)] = values
        show((start + len(places)) / len(order))
    return Measurements(groups, tried, probability, correct, singles, edit_probability, edit_correct, states)


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

    def mean(values: Floats) -> tuple[float, float, float]:
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


def _random_paths(num_blocks: int, count: int, edits: int, seed: int) -> list[Decisions]:
    drawn = RandomPaths(num_blocks, SearchConfig(method="random", simulations=count, edits=edits, seed=seed), "probe")
    found = []
    while (path := drawn.propose()) is not None:
        drawn.report(0.0, False)
        found.append(path)
    return found[1:]  # the first is the base model's


def _edited(num_blocks: int, block: int, decision: int) -> Decisions:
    return (EXECUTE,) * block + (decision,) + (EXECUTE,) * (num_blocks - block - 1)


def _states(scorer: Scorer, prompts: Sequence[Prompt]) -> Floats:
    """`[Q, L x width]`: mean over the windows of what each block's router reads when every block executes.

    A linear router reads no more: its logits are averaged over the windows.
    """
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].text))
    rows: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(order), scorer.batch_size):
        places = order[start : start + scorer.batch_size]
        read: list[torch.Tensor] = []

        def keep(_block: int, means: torch.Tensor, used: torch.Tensor, read: list[torch.Tensor] = read) -> None:
            # Windows that hold no token are zero.
            read.append((means.sum(dim=1) / used[:, None]).cpu())

        with observe_router_inputs(scorer.model, keep):
            scorer.log_likelihoods([prompts[place] for place in places], [execute_all(scorer.num_blocks)] * len(places))
        stacked = torch.stack(read[: scorer.num_blocks], dim=1).flatten(1).numpy()
        rows.update(zip(places, stacked, strict=True))
    return np.array([rows[place] for place in range(len(prompts))], dtype=np.float64)


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


def _explained(
    measured: Measurements, predictions: dict[str, Floats], name: str, resampled: Floats
) -> tuple[float, float, float]:
    """Share of the held-out variance beyond the static prediction that a policy's predictions explain."""
    effects = measured.probability - measured.probability.mean(axis=1, keepdims=True)
    static = ((effects - predictions[STATIC]) ** 2).sum(axis=1)
    left = ((effects - predictions[name]) ** 2).sum(axis=1)
    return _with_interval(1 - left.sum() / static.sum(), 1 - (resampled @ left) / (resampled @ static))


def _with_interval(value: float, draws: Floats) -> tuple[float, float, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(value), float(low), float(high)


def _normal(values: Floats) -> tuple[float, float, float]:
    mean, half = float(values.mean()), _Z * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def _points(value: tuple[float, float, float]) -> str:
    return f"{100 * value[0]:+.1f} [{100 * value[1]:+.1f}, {100 * value[2]:+.1f}]"


def _percent(value: tuple[float, float, float]) -> str:
    return f"{100 * value[0]:.1f} [{100 * value[1]:.1f}, {100 * value[2]:.1f}]"
