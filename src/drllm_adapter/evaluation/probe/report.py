"""What a probe found, for people and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ...decisions import SKIP, Decisions
from ...reporting.percentages import with_interval

BASE, STATIC, BY_TASK = "base", "best static path", "best path of each task"
BY_PROMPT, HINDSIGHT = "predicted from the prompt", "hindsight (luck included)"
_LITTLE, _MUCH = 0.01, 0.03
_LEAST_QUESTIONS = 10

Estimate = tuple[float, float, float]
"""A value and its 95 % interval: value, low, high."""


@dataclass(frozen=True)
class Effect:
    """A single edit against the base path, paired: the change of a mean with its 95 % interval (normal).

    Attributes:
        probability, accuracy: the change of p(right answer) and of the share of right answers: value, low, high.
    """

    block: int
    decision: int
    questions: int
    probability: Estimate
    accuracy: Estimate


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
    static: Estimate
    task: Estimate | None
    question: Estimate
    by_task: Estimate | None
    by_prompt: Estimate
    price: float
    static_path: Decisions
    policies: list[Policy]
    gain: Estimate
    gain_over_task: Estimate | None
    accuracy_gain: Estimate
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
            # Intervals of a few questions say more about the few than about the edit.
            shown_as = _change if effect.questions >= _LEAST_QUESTIONS else _point
            free.add_row(name, shown_as(effect.probability), shown_as(effect.accuracy), str(effect.questions))
        if not shown:
            free.add_row("no edit was scored on two questions: raise --limit or --single-edits", "", "", "")
        shares = Table("of the variance that paths make", "share, %", title="Heterogeneity and predictability",
                       title_justify="left")  # fmt: skip
        shares.add_row("the same for all questions (a static path has it)", _share(self.static))
        if self.task is not None:
            shares.add_row("different between tasks", _share(self.task))
        shares.add_row("different between questions" + (" of a task" if self.task else ""), _share(self.question))
        if self.by_task is not None:
            shares.add_row("of the different: predicted by the task's name", _share(self.by_task))
        shares.add_row("of the different: predicted from the prompt", _share(self.by_prompt))
        gain = Table("path", "accuracy, %", "p(right), %", "mean passes", "worth, points",
                     title=f"Expected gain (worth = p(right) - {self.price:g} x passes / {self.num_blocks})",
                     title_justify="left")  # fmt: skip
        for policy in self.policies:
            gain.add_row(policy.name, f"{100 * policy.accuracy:.1f}", f"{100 * policy.probability:.1f}",
                         f"{policy.mean_passes:.2f}", f"{100 * policy.worth:.1f}")  # fmt: skip
        gain.add_row("predicted - best static", "", "", "", _change(self.gain))
        if self.gain_over_task is not None:
            gain.add_row("predicted - best of each task", "", "", "", _change(self.gain_over_task))
        gain.add_row("predicted - base", _change(self.accuracy_gain), "", "", "")
        return [free, shares, gain]


def _change(value: Estimate) -> str:
    return with_interval(value[0], value[1:], "+")


def _point(value: Estimate) -> str:
    return f"{100 * value[0]:+.1f} (few)"


def _share(value: Estimate) -> str:
    """An estimate of a share may lie outside of what a share can be; what is printed does not."""
    share, low, high = (min(1.0, max(0.0, bound)) for bound in value)
    return with_interval(share, (low, high))
