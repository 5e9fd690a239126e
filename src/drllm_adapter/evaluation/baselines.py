"""The baselines that a router must beat at equal mean passes: published ways to leave out blocks, the best static
paths, routers that see only the task or the length of the prompt, and the oracles.

Everything is chosen on training questions; the questions of the evaluation are scored and nothing else. Mixtures of two
paths make the number of passes exactly equal, see `contenders`.
"""

import math
import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from ..adapter.layer import hidden_of, routed_layers
from ..adapter.steering import force_decisions
from ..decisions import EXECUTE, SKIP, Decisions, Outcome, execute_all, metric, metric_name, passes
from ..reporting.percentages import with_interval
from ..supervision.effects import Effects, Regression, best_by_effects, predicted
from ..tasks import Prompt
from .contenders import Contender, best_mixture, comparison
from .intervals import Outcomes

ScorePaths = Callable[[Sequence[Prompt], Sequence[Sequence[Decisions]]], Sequence[Sequence[Outcome]]]
"""Outcomes `[i][j]` of prompt i along path j of its own list, as `engine.score_paths` gives them."""

_BUCKETS = 4


class Supervised(Protocol):
    """A question of a supervision set."""

    @property
    def task(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def paths(self) -> Sequence[Outcome]: ...
    def to_prompt(self) -> Prompt: ...


@dataclass(frozen=True)
class Effort:
    """How much is spent on choosing baselines; the defaults suit models of up to a billion parameters.

    Attributes:
        greedy_questions: training questions that each step of the greedy selection is judged on.
        greedy_candidates: blocks tried in each step, those that the regression finds cheapest; None tries all.
        state_prompts: training prompts whose hidden states are compared.
        oracle_questions: training questions that the oracle of chance is estimated on.
        seed: of the random paths and of the shuffled answers.
    """

    greedy_questions: int = 128
    greedy_candidates: int | None = None
    state_prompts: int = 64
    oracle_questions: int = 100
    seed: int = 0


@dataclass(frozen=True)
class BaselineTable:
    """The router against every baseline on the same questions.

    Attributes:
        routed: the router.
        rows: one `contenders.comparison` a baseline.
        static: each path that is the same for all questions, on its own: name, decisions, metric with its interval.
        oracles: the oracle of the search and that of chance, on training questions, see `oracles`; empty where
            agreement with the base is measured, which the base's own path has in full.
        metric: what it is called, "accuracy" or "agreement".
    """

    routed: Contender
    rows: list[dict[str, Any]]
    static: list[dict[str, Any]]
    oracles: dict[str, Any]
    metric: str = "accuracy"

    def to_json(self) -> dict[str, Any]:
        routed = comparison(self.routed, self.routed)
        own = {name: routed[name] for name in ("value", "interval", "passes")}
        return {
            "metric": self.metric,
            "questions": len(self.routed.each),
            "routed": own,
            "baselines": self.rows,
            "static": self.static,
            "oracles": self.oracles,
        }

    def table(self) -> Table:
        """The table for people."""
        title = f"Baselines at equal mean passes, {len(self.routed.each)} questions"
        table = Table("path", "passes", f"{self.metric}, %", "routed - it", title=title, title_justify="left")
        own = comparison(self.routed, self.routed)
        table.add_row("routed", f"{own['passes']:.2f}", with_interval(own["value"], own["interval"]), "")
        for row in self.rows:
            table.add_row(
                row["name"], f"{row['passes']:.2f}", with_interval(row["value"], row["interval"]),
                with_interval(row["difference"], row["difference_interval"], "+"),
            )  # fmt: skip
        for name in ("search", "chance"):
            oracle = self.oracles.get(name)
            if oracle is not None:
                what = f"oracle of {name}, {self.oracles['tries']:.0f} tries"
                table.add_row(what, f"{oracle['passes']:.2f}", f"{100 * oracle['accuracy']:.1f}", "")
        return table


class PathOutcomes:
    """Questions of one kind, with what every static path made of them, each path scored once."""

    def __init__(self, prompts: Sequence[Prompt], score: ScorePaths) -> None:
        self.prompts, self._score = list(prompts), score
        self._known: dict[Decisions, Sequence[Outcome]] = {}

    def prepare(self, paths: Sequence[Decisions]) -> None:
        """Score these paths now, in one go: what they share runs once."""
        new = [path for path in dict.fromkeys(paths) if path not in self._known]
        if new:
            scores = self._score(self.prompts, [new] * len(self.prompts))
            self._known |= {path: [of_prompt[place] for of_prompt in scores] for place, path in enumerate(new)}

    def along(self, path: Decisions) -> Sequence[Outcome]:
        """The outcome of every question along one path."""
        self.prepare([path])
        return self._known[path]

    def each(self, paths: Sequence[Sequence[Decisions]]) -> list[Outcomes]:
        """One array of outcomes for each list of paths, in which every question has its own."""
        scores = self._score(self.prompts, list(zip(*paths, strict=True)))
        return [np.array([metric(of_prompt[place]) for of_prompt in scores]) for place in range(len(paths))]

    def contender(self, name: str, path: Decisions, what: str = "") -> Contender:
        return Contender(name, _each(self.along(path)), passes(path), what)


def compare_with_baselines(
    model: Any,
    tokenizer: Any,
    routed: Sequence[Outcome],
    prompts: Sequence[Prompt],
    tasks: Sequence[str],
    supervision: Iterable[Supervised],
    score: ScorePaths,
    effort: Effort | None = None,
) -> BaselineTable:
    """The router's outcomes against all baselines at the router's mean number of passes.

    Args:
        model: with a router adapter, for the hidden states of training prompts.
        routed: outcomes of the router, one a prompt.
        prompts, tasks: of the evaluation.
        supervision: training questions and the paths tried on them; gone through twice, and let go.
        score: outcomes of prompts along paths, the base's.

    Raises:
        DrLLMError: the supervision set has free answers, which cannot be scored again.
    """
    effort = effort or Effort()
    blocks = len(routed[0].decisions)
    own = Contender("routed", _each(routed), float(np.mean([passes(item.decisions) for item in routed])))
    measured = metric_name(routed)
    numbers = sorted({min(max(number, 1), blocks) for number in (math.floor(own.passes), math.ceil(own.passes))})
    tested = PathOutcomes(prompts, score)
    kept = max(effort.greedy_questions, effort.state_prompts, effort.oracle_questions)
    first: list[Supervised] = []
    lengths = array("q")
    overall = Regression()
    of_task: dict[Hashable, Regression] = defaultdict(Regression)
    for row in supervision:
        if len(first) < kept:
            first.append(row)
        lengths.append(len(row.prompt))
        overall.add(row.paths)
        of_task[row.task].add(row.paths)
    effects = overall.effects()
    edges = np.quantile(lengths, np.linspace(0, 1, _BUCKETS + 1)[1:-1])

    def bucket(text: str) -> int:
        return int(np.searchsorted(edges, len(text)))

    of_length: dict[Hashable, Regression] = defaultdict(Regression)
    for row in supervision:
        of_length[bucket(row.prompt)].add(row.paths)
    judged = first[: effort.greedy_questions]
    training = PathOutcomes([row.to_prompt() for row in judged], score)
    # A kind that gives up more blocks than the mean needs longer lists than the mean does.
    least = numbers[0] if measured == "accuracy" else max(1, 2 * numbers[0] - blocks)
    greedy = greedy_paths(training, effects, least, effort.greedy_candidates)
    similarity = state_similarity(model, tokenizer, [row.to_prompt() for row in first[: effort.state_prompts]])
    order = block_influence_order(similarity)
    static: dict[str, tuple[str, Callable[[int], Decisions]]] = {
        "static, greedy": ("the cheapest block on training questions left out, one by one", greedy.__getitem__),
        "static, regression": (
            "best sum of effects on the margin over all paths tried on training questions",
            lambda number: best_by_effects(effects, number),
        ),
        "ShortGPT": (
            "blocks whose output is most similar to their input left out (block influence)",
            lambda number: without(order[: blocks - number], blocks),
        ),
        "contiguous run": (
            "the run of blocks whose output is most similar to its input left out, later blocks kept (LLM-Streamline's "
            "choice, without its replacement network)",
            lambda number: without(most_similar_run(similarity, blocks - number), blocks),
        ),
        "evenly spaced": ("blocks left out at even distances", lambda number: evenly_spaced(blocks, number)),
        "early exit": (
            "the last blocks left out, final norm and head on what is reached (LayerSkip's exit, without its training)",
            lambda number: (EXECUTE,) * number + (SKIP,) * (blocks - number),
        ),
    }
    tested.prepare([execute_all(blocks), *(path_of(number) for _, path_of in static.values() for number in numbers)])
    base = tested.contender("base", execute_all(blocks), "every block once")
    listed = {"base": execute_all(blocks)} | {
        f"{name}, {number} passes": path_of(number) for name, (_, path_of) in static.items() for number in numbers
    }
    alone = [_static(tested.contender(name, path), path) for name, path in listed.items()]
    table = [base, _random(tested, numbers, base, own.passes, effort.seed)]
    for name, (what, path_of) in static.items():
        points = [base, *(tested.contender(name, path_of(number), what) for number in numbers)]
        table.append(replace(best_mixture(points, own.passes), name=name, what=what))
    if measured == "agreement":
        # What a deep path loses more than a shallow one is less than in proportion: the sceptic's baseline.
        tested.prepare([*greedy.values()])
        points = [base, *(tested.contender("greedy", path) for path in greedy.values())]
        what = "the best mixture of any two of the base and the greedy paths, of whatever depth, a lot for each prompt"
        table.append(replace(best_mixture(points, own.passes), name="static, any mixture", what=what))
    by_task = ("task router", "the best static path of each task, from its name alone", of_task,
               [row.task for row in judged], list(tasks))  # fmt: skip
    by_length = ("length router", "the best static path of each quarter of prompt lengths", of_length,
                 [bucket(row.prompt) for row in judged], [bucket(prompt.text) for prompt in prompts])  # fmt: skip
    paths = [path for number in numbers for path in (greedy[number], best_by_effects(effects, number))]
    ungrouped = [base, *(tested.contender("static", path) for path in paths)]
    for name, what, regressions, train_groups, test_groups in (by_task, by_length):
        along = None if measured == "accuracy" else (training, train_groups, tuple(greedy.values()))
        table.append(_grouped(name, what, test_groups, regressions, effects, along, tested, ungrouped, own.passes))
    luck = oracles(first, score, effort) if measured == "accuracy" else {}
    return BaselineTable(own, [comparison(own, item) for item in table], alone, luck, measured)


def _static(contender: Contender, path: Decisions) -> dict[str, Any]:
    row = comparison(contender, contender)
    return {"decisions": list(path), **{name: row[name] for name in ("name", "value", "interval", "passes")}}


# Paths that leave out blocks


def without(skipped: Sequence[int], blocks: int) -> Decisions:
    """The path that skips these blocks and executes the others."""
    left_out = set(skipped)
    return tuple(SKIP if block in left_out else EXECUTE for block in range(blocks))


def evenly_spaced(blocks: int, number: int) -> Decisions:
    """The path of `number` passes that skips blocks at equal distances, half a distance away from both ends."""
    count = blocks - number
    return without([int((place + 0.5) * blocks / count) for place in range(count)], blocks)


def block_influence_order(similarity: NDArray[np.float64]) -> list[int]:
    """Blocks by ShortGPT's block influence (Men et al., arXiv 2403.03853), 1 - cos(input, output), least first.

    Args:
        similarity: [L + 1, L + 1], see `state_similarity`.
    """
    influence = [1 - similarity[block, block + 1] for block in range(len(similarity) - 1)]
    return sorted(range(len(influence)), key=lambda block: (influence[block], block))


def most_similar_run(similarity: NDArray[np.float64], length: int) -> list[int]:
    """The run of `length` blocks whose output is most similar to its input (LLM-Streamline, arXiv 2403.19135)."""
    if length == 0:
        return []
    starts = range(len(similarity) - length)
    start = max(starts, key=lambda first: similarity[first, first + length])
    return list(range(start, start + length))


@torch.inference_mode()
def state_similarity(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
    """Mean cosine similarity of what enters and leaves the blocks of the base: float64 [L + 1, L + 1].

    Element (i, j) compares what enters block i with what enters block j (L: what leaves the last one), the same token
    with itself, over all tokens of all prompts. Prompts run one at a time, so there is no padding.
    """
    layers = routed_layers(model)
    total, tokens = np.zeros((len(layers) + 1,) * 2), 0
    states: list[Tensor] = []

    def keep_input(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append((args[0] if args else kwargs[layer.hidden_argument])[0].float())

    def keep_output(layer: Any, args: tuple[Any, ...], output: Any) -> None:
        states.append(hidden_of(output)[0].float())

    handles = [layer.register_forward_pre_hook(keep_input, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(keep_output))
    try:
        for prompt in prompts:
            states.clear()
            ids = tokenizer(prompt.text, add_special_tokens=not prompt.templated, return_tensors="pt")["input_ids"]
            with force_decisions(model, execute_all(len(layers))):
                model(input_ids=ids.to(model.device), use_cache=False)
            stacked = torch.nn.functional.normalize(torch.stack(states), dim=-1)
            total += torch.einsum("itd,jtd->ij", stacked, stacked).double().cpu().numpy()
            tokens += ids.shape[1]
    finally:
        for handle in handles:
            handle.remove()
    return total / max(1, tokens)


def greedy_paths(
    training: PathOutcomes, effects: Effects, least: int, candidates: int | None = None
) -> dict[int, Decisions]:
    """By number of passes: from the base on, the block is left out that costs training questions the least.

    Cost is in the mean probability of the right answer, which is smoother than the share of right answers, or in
    agreement with the base.

    Args:
        effects: of a regression; says which blocks are tried when `candidates` bounds their number.
        least: the shortest path wanted.
    """
    blocks = len(effects)
    path = execute_all(blocks)
    found = {blocks: path}
    for number in range(blocks - 1, least - 1, -1):
        left = sorted((block for block in range(blocks) if path[block]), key=lambda block: -effects[block, SKIP])
        tried = [without([block, *_skipped(path)], blocks) for block in left[:candidates]]
        training.prepare(tried)
        path = max(tried, key=lambda option: np.mean([_smooth(item) for item in training.along(option)]))
        found[number] = path
    return found


def _smooth(outcome: Outcome) -> float:
    return outcome.probability if outcome.agreement is None else outcome.agreement


def _skipped(path: Decisions) -> list[int]:
    return [block for block, decision in enumerate(path) if decision == SKIP]


def _random(tested: PathOutcomes, numbers: Sequence[int], base: Contender, mean_passes: float, seed: int) -> Contender:
    generator = random.Random(seed)
    blocks, drawn = int(base.passes), []
    for number in numbers:
        paths = [without(generator.sample(range(blocks), blocks - number), blocks) for _ in tested.prompts]
        drawn.append(paths)
    outcomes = zip(tested.each(drawn), numbers, strict=True)
    # Not mixed with the base unless the mean is beyond the numbers: that would not be random paths.
    points = [Contender("random", right, number) for right, number in outcomes]
    if len(numbers) == 1 and mean_passes != numbers[0]:
        points.append(base)
    return replace(best_mixture(points, mean_passes), name="random", what="other blocks left out for every question")


# Routers that see only a group


def _grouped(
    name: str,
    what: str,
    test_groups: Sequence[Hashable],
    regressions: Mapping[Hashable, Regression],
    effects: Effects,
    measured: tuple[PathOutcomes, Sequence[Hashable], Sequence[Decisions]] | None,
    tested: PathOutcomes,
    ungrouped: Sequence[Contender],
    mean_passes: float,
) -> Contender:
    """The best static path of each group, with passes where the group needs them, at the router's mean passes.

    The effects of a group are drawn towards those of all questions, and a path is worth their sum. Where agreement is
    the metric, which a few prompts show as no few right answers can, it is worth what was `measured`: some training
    prompts, their groups, and paths that are tried beside those of the group's own effects. For a price per pass every
    group takes the number of passes that is worth it; the two prices whose means lie around the router's are scored and
    mixed. `ungrouped` are static paths for all questions, with which they may be mixed: a router that sees the group
    may also ignore it.
    """
    of_group = {
        group: regressions[group].effects(prior=effects) if group in regressions else effects
        for group in set(test_groups)
    }
    blocks = len(effects)
    options: dict[Hashable, list[tuple[Decisions, float]]] = {}
    for group, own in of_group.items():
        if measured is None:
            paths = [best_by_effects(own, number) for number in range(1, blocks + 3)]
            options[group] = [(path, predicted(own, path)) for path in paths]
            continue
        training, training_groups, others = measured
        least = min(map(passes, others))
        paths = [*others, *(best_by_effects(own, number) for number in range(least, blocks + 1))]
        training.prepare(paths)
        places = [place for place, name in enumerate(training_groups) if name == group] or range(len(training_groups))
        options[group] = [
            (path, float(np.mean([metric(training.along(path)[place]) for place in places]))) for path in paths
        ]

    def assigned(price: float) -> dict[Hashable, Decisions]:
        return {
            group: max(found, key=lambda item: (item[1] - price * passes(item[0]), -passes(item[0])))[0]
            for group, found in options.items()
        }

    assignments = [assigned(price) for price in np.geomspace(1e-4, 10, 400)]
    assignments.append(assigned(0.0))
    means = [float(np.mean([passes(item[group]) for group in test_groups])) for item in assignments]
    below = [place for place, mean in enumerate(means) if mean <= mean_passes]
    above = [place for place, mean in enumerate(means) if mean >= mean_passes]
    ends = [max(below, key=means.__getitem__)] if below else []
    ends += [min(above, key=means.__getitem__)] if above else []
    points = list(ungrouped)
    outcomes = tested.each([[assignments[place][group] for group in test_groups] for place in ends])
    points += [Contender(name, right, means[place]) for right, place in zip(outcomes, ends, strict=True)]
    return replace(best_mixture(points, mean_passes), name=name, what=what)


# Oracles


def oracles(supervision: Sequence[Supervised], score: ScorePaths, effort: Effort) -> dict[str, Any]:
    """How often some path of those tried is right, and how often it would be if the right answers were drawn by lot.

    Both on the same training questions and paths. An answer drawn by lot says nothing about the question: whatever the
    oracle of chance reaches, a search reaches by trying often enough. What the oracle of the search has above it is
    the most that routing can be hoped to give on these questions.

    Returns:
        `tries` (mean paths a question), `questions`, and for `search` and `chance` the share of questions with a right
        path (`accuracy`), the same along the base model's path (`base`), and the mean passes of the shortest right path
        (`passes`, of the base where no path is right).
    """
    rows = list(supervision[: effort.oracle_questions])
    generator = random.Random(effort.seed)
    found: dict[str, Any] = {
        "questions": len(rows),
        "tries": float(np.mean([len(row.paths) for row in rows])),
        "search": _oracle([row.paths for row in rows]),
    }
    prompts = [row.to_prompt() for row in rows]
    drawn = [replace(prompt, answer=generator.randrange(len(prompt.continuations))) for prompt in prompts]
    found["chance"] = _oracle(score(drawn, [[path.decisions for path in row.paths] for row in rows]))
    return found


def _oracle(questions: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    blocks = len(questions[0][0].decisions)
    shortest = [min((passes(path.decisions) for path in paths if path.correct), default=blocks) for paths in questions]
    return {
        "accuracy": float(np.mean([any(path.correct for path in paths) for paths in questions])),
        "base": float(np.mean([paths[0].correct for paths in questions])),
        "passes": float(np.mean(shortest)),
    }


def _each(scores: Sequence[Outcome]) -> Outcomes:
    return np.array([metric(item) for item in scores])
