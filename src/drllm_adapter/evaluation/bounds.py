"""Never worse than allowed: the depth control at which routers keep a bound on what they lose against the base."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..adapter.config import DEPTH_CONTROL_AS_TRAINED as AS_TRAINED
from ..adapter.steering import set_depth_control
from ..decisions import EXECUTE, Outcome
from ..errors import DrLLMError, check_range
from ..reporting.percentages import with_interval
from .compare import Estimate, Report, compare

IDENTITY = 0.5
"""The depth control at which every block executes."""
NOTHING: Estimate = (0.0, 0.0, 0.0)
_STEPS = 8
# In logits. Beyond it float32 probabilities are 0 and 1.
_SUREST = 16.0


@dataclass(frozen=True)
class HeldOut:
    """What the routers lose against the base on questions or prompts that they were not trained on.

    Attributes:
        metric: "accuracy" or "agreement".
        questions: how many.
        num_blocks: passes of the base.
        as_trained_loss, as_trained_passes: base minus routed, in shares of the metric, with its 95 % interval, and mean
            block passes, before anything was set.
        max_loss, mean_passes_allowed: what was asked for; None where it was not.
        depth_control: what was set; `IDENTITY` where nothing that skips keeps what was asked for.
        loss, mean_passes: the same as above with it.
    """

    metric: str
    questions: int
    num_blocks: int
    as_trained_loss: Estimate
    as_trained_passes: float
    max_loss: float | None
    mean_passes_allowed: float | None
    depth_control: float
    loss: Estimate
    mean_passes: float

    @property
    def is_identity(self) -> bool:
        return self.depth_control == IDENTITY

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """One sentence or two."""
        asked = "prompts" if self.metric == "agreement" else "questions"
        trained = _told(self.as_trained_loss, self.as_trained_passes, self.num_blocks, self.metric)
        said = f"on {self.questions} {asked} that were held out the routers lose {trained} as trained"
        if self.depth_control == AS_TRAINED:
            return f"{said}."
        if self.is_identity:
            points = 100 * (self.max_loss or 0.0)
            return (
                f"{said}; no setting that skips keeps the upper end of the loss within {points:g} points, so every "
                f"block executes: nothing is lost, and nothing gained."
            )
        now = _told(self.loss, self.mean_passes, self.num_blocks, self.metric)
        missed = ""
        if self.mean_passes_allowed is not None and self.mean_passes > self.mean_passes_allowed + 1e-9:
            missed = f" (a mean of {self.mean_passes_allowed:g} passes would lose more than is allowed)"
        return f"{said}, and {now} with the depth control {self.depth_control:.4g}, which is saved{missed}."


def check_limits(max_loss: float | None, mean_passes: float | None) -> None:
    """Refuse what no search for a setting makes sense with; `max_loss` in points.

    Raises:
        DrLLMError: a limit is out of range.
    """
    if max_loss is not None:
        check_range("max_loss", max_loss, 0, 100, whole=False)
    if mean_passes is not None and not 0 < mean_passes < math.inf:
        raise DrLLMError(f"mean_passes must be a number of passes above 0, but {mean_passes:g} was given; correct it.")


def hold_to_limits(
    model: Any,
    base: Sequence[Outcome],
    score: Callable[[], Sequence[Outcome]],
    *,
    max_loss: float | None = None,
    mean_passes: float | None = None,
) -> HeldOut:
    """Measure what the routers lose on some questions, and set the depth control so that they keep within the limits.

    The depth control is a threshold that all routers share: from the routers as trained (-0.5) upwards they leave a
    block out, or repeat it, only where they are surer of it, up to the identity (from 0); downwards they leave out
    more. Where routers only skip or execute, that orders decisions as a price on the logits does. The lowest setting
    within the limits is found by bisection, each try by running the questions.

    Args:
        model: with an active router adapter, whose depth control is set; it is saved with the adapter.
        base: outcomes of the questions in the base model.
        score: outcomes along the routers' paths under the depth control that is set when it is called.
        max_loss: the most that may be lost, in points of the metric (percent): the upper end of the 95 % interval of
            base minus routed must not be above it. Where nothing else keeps it the identity is set.
        mean_passes: the most mean block passes. `max_loss` goes before it.

    Raises:
        DrLLMError: a limit is out of range.
    """
    check_limits(max_loss, mean_passes)
    allowed = None if max_loss is None else max_loss / 100
    tried: dict[float, Report] = {}

    def at(threshold: float) -> Report:
        if threshold not in tried:
            set_depth_control(model, depth_control_of(threshold))
            tried[threshold] = compare(base, score(), [None] * len(base))
        return tried[threshold]

    def is_long(threshold: float) -> bool:
        return mean_passes is not None and at(threshold).mean_passes > mean_passes

    def is_bad(threshold: float) -> bool:
        return allowed is not None and loss_of(at(threshold))[2] > allowed

    trained = at(0.0)
    # The surest threshold that is short enough, and from there on the least sure one that is good enough.
    longest = _bisect(lambda threshold: not is_long(threshold), 0.0, -_SUREST) if is_long(0.0) else 0.0
    chosen = longest
    if allowed is not None:
        if is_bad(longest):
            chosen = _bisect(lambda threshold: not is_bad(threshold), longest, _SUREST)
        elif mean_passes is None:
            # Within the limit as trained: as much further as the limit allows.
            chosen = _bisect(is_bad, 0.0, -_SUREST, last_before=True)
    if chosen > 0 and (is_bad(chosen) or loss_of(at(chosen)) == NOTHING):
        control, found, passed = IDENTITY, NOTHING, float(trained.num_blocks)
    else:
        control, found, passed = depth_control_of(chosen), loss_of(at(chosen)), at(chosen).mean_passes
    set_depth_control(model, control)
    return HeldOut(
        metric=trained.routed.name,
        questions=len(base),
        num_blocks=trained.num_blocks,
        as_trained_loss=loss_of(trained),
        as_trained_passes=trained.mean_passes,
        max_loss=allowed,
        mean_passes_allowed=mean_passes,
        depth_control=control,
        loss=found,
        mean_passes=passed,
    )


def loss_of(report: Report) -> Estimate:
    """Base minus routed with its 95 % interval; exactly 0 where every block executed."""
    if all(counts[EXECUTE] == sum(counts) for counts in report.decisions):
        return NOTHING
    low, high = report.difference_interval
    return -report.difference, -high, -low


def depth_control_of(threshold: float) -> float:
    """The depth control at which a block is skipped only if the logit of skip is so much above that of execute.

    Exact where a repeat is improbable: skip - execute, of the probabilities, is then tanh of half the difference of
    the logits, and depth control compares that with its own share s as s / (1 - s).
    """
    odds = math.tanh(abs(threshold) / 2)
    share = odds / (1 + odds)
    return AS_TRAINED + share if threshold >= 0 else AS_TRAINED - 0.5 * share


def _bisect(holds: Callable[[float], bool], start: float, end: float, *, last_before: bool = False) -> float:
    """From `start` towards `end`, where `holds` becomes true: the first point at which it does, within 1 / 256.

    `holds(start)` is false, and `holds(end)` is taken to be true.

    Args:
        last_before: the last point at which it does not, in place of the first at which it does.
    """
    before, after = start, end
    for _ in range(_STEPS):
        middle = (before + after) / 2
        before, after = (before, middle) if holds(middle) else (middle, after)
    return before if last_before else after


def _told(loss: Estimate, passed: float, num_blocks: int, metric: str) -> str:
    return f"{with_interval(loss[0], loss[1:])} points of {metric} at {passed:.2f} of {num_blocks} passes"
