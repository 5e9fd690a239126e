"""`TrainingConfig`: how routers are trained."""

import math
from dataclasses import dataclass

from ..errors import check_range


@dataclass(frozen=True)
class TrainingConfig:
    """How the routers are trained; the defaults are the paper's constants where it gives them.

    Attributes:
        epochs: passes over the training questions, at most.
        learning_rate: peak of the cosine schedule of AdamW.
        weight_decay: of AdamW, on all weights.
        warmup_steps: linear warm-up; at most a tenth of all steps (500 are 8 % of the paper's run), so that a small
            set does not spend its whole run warming up.
        batch_size: questions a step.
        gamma: of the focal loss.
        beta: of the effective number of samples, see `loss.effective_number_weights`.
        validation_share: share of the questions held out, at least one question.
        patience: epochs without a lower validation loss after which training stops; None never stops. The weights of
            the epoch with the lowest validation loss are kept either way.
        seed: of the validation split, the initial weights and the order of the questions.

    Raises:
        DrLLMError: a value is of the wrong type or out of its range.
    """

    epochs: int = 25
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 500
    batch_size: int = 16
    gamma: float = 2.0
    beta: float = 0.999
    validation_share: float = 0.1
    patience: int | None = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("epochs", 1), ("warmup_steps", 0), ("batch_size", 1), ("patience", 1)):
            if name != "patience" or self.patience is not None:
                check_range(name, getattr(self, name), lowest, math.inf)
        check_range("seed", self.seed, 0, 2**63 - 1)
        for name, smallest, highest in (
            ("learning_rate", 1e-8, 10.0),
            ("weight_decay", 0.0, 10.0),
            ("gamma", 0.0, 10.0),
            ("beta", 0.0, 0.999999),
            ("validation_share", 0.001, 0.9),
        ):
            check_range(name, getattr(self, name), smallest, highest, whole=False)
