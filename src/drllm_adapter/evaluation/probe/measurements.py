"""What a probe scores: every question along the same paths, and what the routers read of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...adapter.layer import observe_router_inputs
from ...decisions import EXECUTE, REPEAT, SKIP, Decisions, execute_all
from ...errors import DrLLMError
from ...scoring.plain import Scorer
from ...scoring.shared_prefix import SharingScorer
from ...search.random_paths import random_paths
from ...tasks import Prompt

Floats = NDArray[np.float64]

LEAST_QUESTIONS = 20
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
    tried = [execute_all(num_blocks), *random_paths(num_blocks, paths, edits, seed, "probe")]
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
