"""Trains the routers of all blocks at once on stored features.

While the label path is forced, no router influences another or the hidden states, so the features of a question never
change: the base model is not needed here, and the gradients are those of training inside it.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from ..decisions import CLASS_NAMES
from ..errors import DrLLMError
from .batches import Batch, BatchReader, Rows
from .config import TrainingConfig
from .features import FeatureStore
from .loss import effective_number_weights
from .metrics import decision_metrics, static_decisions
from .objectives import EffectRegression, Imitation, Objective, WeightedImitation
from .report import data_line, result_line, training_line
from .routers import Weights, fresh_weights, stacked_logits

DEFAULT_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class TrainingResult:
    """What training gives.

    Attributes:
        weights: the stack of the R trained routers at `best_epoch`, float32 on the CPU, see `routers.Weights`.
        layers: the blocks that the R routers belong to, ascending.
        history: one dict an epoch: `epoch` (from 1), `learning_rate`, `train_loss`, `validation_loss` and the values
            of `metrics.decision_metrics` on the validation questions.
        metrics: for JSON. `routers`: the history's entry of the best epoch; `static`: the same values for the
            commonest class of each block, which ignores the question; `label_mean_passes`: of the validation labels;
            `train_questions`, `validation_questions`, `class_weights`, `weights` (how many), `epochs` (that ran),
            `steps_per_epoch` and `seconds`.
        best_epoch: epoch with the lowest validation loss, from 1.
        lines: the three lines about the run for people: data, training, result.
    """

    weights: Weights
    layers: tuple[int, ...]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    best_epoch: int
    lines: tuple[str, str, str]


def train_routers(
    store: FeatureStore,
    config: TrainingConfig | None = None,
    *,
    example_weights: NDArray[np.float32] | None = None,
    effects: tuple[EffectRegression, Tensor] | None = None,
    device: str | torch.device | None = None,
    memory: int = DEFAULT_MEMORY,
    console: Console | None = None,
) -> TrainingResult:
    """Train the routers of all the store's blocks, all at once.

    The same store, config and device give the same weights, bit for bit on the same machine with the same number of
    threads; neither `memory` nor the global random state matters.

    Args:
        store: what the routers read and shall decide.
        config: how to train; None is `TrainingConfig()`.
        example_weights: float32 [N], how much each of the store's N examples counts, when a question has several paths
            (rows with the same id); the loss is then a weighted cross-entropy. None is the focal loss.
        effects: regress effects in place of imitating the store's labels, which then only serve for the metrics; with
            the average effects [R, 3] to start from.
        device: where to train; None is the first GPU, or the CPU without one.
        memory: features of at most this many bytes are held on the device; larger ones are read from disk as they are
            needed. Beside them, training takes about 20 bytes a router weight and two batches of
            batch_size x R x K x d floats.
        console: where the three lines go and, on a terminal, a progress bar; None prints nothing.

    Raises:
        DrLLMError: fewer than two questions or classes, features that are not finite, or a loss that is not.
    """
    started = time.perf_counter()
    config = config or TrainingConfig()
    console = console or Console(quiet=True)
    train_rows, validation_rows = split_questions(store.ids, config.validation_share, config.seed)
    train_labels = torch.from_numpy(store.routed_labels[train_rows])
    class_weights = effective_number_weights(train_labels, config.beta)

    train_questions, validation_questions = (
        len({store.ids[r] for r in rows}) for rows in (train_rows, validation_rows)
    )
    lines = [data_line(train_questions, validation_questions, len(store), len(store.layers), train_labels)]
    console.print(lines[-1], highlight=False, markup=False)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    counts = np.ones(len(store), dtype=np.float32) if example_weights is None else example_weights
    if counts.shape != (len(store),) or not (counts >= 0).all() or not counts[train_rows].any():
        raise DrLLMError(
            f"example_weights must be one number of at least 0 for each of {len(store)} examples, not all 0, but "
            f"{list(counts.shape)} values were given; pass one weight for each row of the store."
        )
    generator = torch.Generator().manual_seed(config.seed)
    start = fresh_weights(len(store.layers), store.means.shape[-1], config.hidden, generator)
    objective: Objective
    if effects is not None:
        regression, average = effects
        objective = replace(regression, paths=regression.paths.to(place), margins=regression.margins.to(place))
        start = objective.start(start, average)
    elif example_weights is not None:
        objective = WeightedImitation(torch.from_numpy(counts / counts[train_rows].mean()).to(place))
    else:
        objective = Imitation(class_weights.to(place), config.gamma)
    run = _Run(store, config, BatchReader(store, place, memory), objective, start, generator)
    history, best_epoch, weights = run.train(train_rows, validation_rows, console)

    labels = store.routed_labels[validation_rows]
    static = np.broadcast_to(static_decisions(train_labels.numpy()), labels.shape)
    metrics = {
        "routers": history[best_epoch - 1],
        "static": decision_metrics(labels, static, run.other_blocks),
        "label_mean_passes": float(
            np.average(labels.sum(axis=1, dtype=np.int64), weights=counts[validation_rows]) + run.other_blocks
        ),
        "train_questions": train_questions,
        "validation_questions": validation_questions,
        "train_examples": len(train_rows),
        "class_weights": dict(zip(CLASS_NAMES, class_weights.tolist(), strict=True)),
        "weights": sum(weight.numel() for weight in weights.values()),
        "epochs": len(history),
        "steps_per_epoch": math.ceil(len(train_rows) / config.batch_size),
        "seconds": time.perf_counter() - started,
    }
    for line in (training_line(metrics, history[best_epoch - 1]), result_line(metrics)):
        lines.append(line)
        console.print(line, highlight=False, markup=False)
    return TrainingResult(
        weights=weights,
        layers=store.layers,
        history=history,
        metrics=metrics,
        best_epoch=best_epoch,
        lines=(lines[0], lines[1], lines[2]),
    )


def split_questions(ids: Sequence[str], share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows of the training and of the validation questions, each ascending.

    The `share` of the ids with the lowest hash of id and seed is held out (at least one id, never all), so the split
    depends neither on the order of the questions nor on the machine, and rows with the same id stay together.

    Raises:
        DrLLMError: fewer than two different ids.
    """
    ranked = sorted(set(ids), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    if len(ranked) < 2:
        raise DrLLMError(
            f"training needs at least two questions, one of them to validate on, but {len(ranked)} was found; search "
            f"more questions."
        )
    held_out = set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])
    validation = np.array([name in held_out for name in ids])
    return np.flatnonzero(~validation), np.flatnonzero(validation)


class _Run:
    """One training: what stays the same over its epochs, and the weights that do not."""

    def __init__(
        self,
        store: FeatureStore,
        config: TrainingConfig,
        reader: BatchReader,
        objective: Objective,
        start: Weights,
        generator: torch.Generator,
    ) -> None:
        self.store, self.config, self.reader, self.objective = store, config, reader, objective
        self.other_blocks = store.labels.shape[1] - len(store.layers)
        self.generator = generator
        self.weights = {name: weight.to(reader.device).requires_grad_() for name, weight in start.items()}

    def train(
        self, train_rows: Rows, validation_rows: Rows, console: Console
    ) -> tuple[list[dict[str, Any]], int, Weights]:
        """All epochs: the history, the best epoch (from 1) and its weights on the CPU."""
        config = self.config
        steps = math.ceil(len(train_rows) / config.batch_size) * config.epochs
        # fused: one pass over the weights instead of one for each of AdamW's operations.
        optimizer = torch.optim.AdamW(
            list(self.weights.values()), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, min(config.warmup_steps, steps // 10), steps)
        labels = self.store.routed_labels[validation_rows]
        history: list[dict[str, Any]] = []
        best_loss, best_epoch, best_weights = math.inf, 0, dict(self.weights)
        epochs = range(1, config.epochs + 1)
        for epoch in track(epochs, "epochs", console=console, transient=True, disable=not console.is_terminal):
            train_loss = self._train_epoch(train_rows, optimizer, schedule)
            validation_loss, predictions = self._evaluate(validation_rows)
            history.append(
                {
                    "epoch": epoch,
                    "learning_rate": schedule.get_last_lr()[0],
                    "train_loss": train_loss,
                    "validation_loss": validation_loss,
                    **decision_metrics(labels, predictions, self.other_blocks),
                }
            )
            if validation_loss < best_loss:
                best_loss, best_epoch = validation_loss, epoch
                best_weights = {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}
            if config.patience is not None and epoch - best_epoch >= config.patience:
                break
        return history, best_epoch, best_weights

    def _train_epoch(self, rows: Rows, optimizer: torch.optim.Optimizer, schedule: Any) -> float:
        """One pass over the questions in a fresh order; the mean loss on the way."""
        order = rows[torch.randperm(len(rows), generator=self.generator).numpy()]
        total = 0.0
        for batch in self.reader.batches(_groups(order, self.config.batch_size)):
            loss, _ = self._loss(batch)
            total += self._finite(loss, batch) * len(batch.rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return total / len(rows)

    @torch.no_grad()
    def _evaluate(self, rows: Rows) -> tuple[float, NDArray[np.int8]]:
        """Mean loss and predicted decisions, int8 [len(rows), R]."""
        total, predictions = 0.0, []
        for batch in self.reader.batches(_groups(rows, self.config.batch_size)):
            loss, logits = self._loss(batch)
            total += self._finite(loss, batch) * len(batch.rows)
            predictions.append(logits.argmax(dim=-1).to("cpu", torch.int8).numpy())
        return total / len(rows), np.concatenate(predictions)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch's loss and logits [B, R, 3]."""
        logits = stacked_logits(self.weights, batch.means, batch.windows)
        return self.objective(logits, batch), logits

    def _finite(self, loss: Tensor, batch: Batch) -> float:
        """The loss as a float; a `DrLLMError` that says whose fault it is when it is not finite."""
        value = loss.item()
        if math.isfinite(value):
            return value
        for row, means in zip(batch.rows, batch.means.unbind(dim=1), strict=True):
            if not means.isfinite().all():
                raise DrLLMError(
                    f"features must be finite, but those of question {self.store.ids[row]!r} hold NaN or infinite "
                    f"values; leave that question out or load the base model in float32."
                )
        raise DrLLMError(
            f"the training loss must be finite, but it became {value}; lower the learning rate, "
            f"{self.config.learning_rate:g} now."
        )


def _groups(rows: Rows, size: int) -> Iterator[Rows]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
