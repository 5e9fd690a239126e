"""Trains the routers of all blocks at once on stored features.

While the label path is forced, no router influences another or the hidden states, so the features of a question never
change: the base model is not needed here, and the gradients are those of training inside it.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from ..decisions import CLASS_NAMES
from ..errors import DrLLMError, Interrupted
from ..jobs import JobProgress, Stop, job_progress, stop_on_signals, track
from .batches import Batch, BatchReader, Rows
from .checkpoint import TrainingState, load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .features import FeatureStore
from .loss import effective_number_weights
from .metrics import decision_metrics, static_decisions
from .objectives import EffectRegression, Imitation, Objective, WeightedImitation
from .report import data_line, result_line, training_line, verdict_line
from .routers import Weights, fresh_weights, stacked_logits

DEFAULT_MEMORY = 4 * 2**30
CHECKPOINT_SECONDS = 60.0


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
    router_width: int = 128,
    example_weights: NDArray[np.float32] | None = None,
    effects: tuple[EffectRegression, Tensor] | None = None,
    device: str | torch.device | None = None,
    memory: int = DEFAULT_MEMORY,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    console: Console | None = None,
    log: TextIO | None = None,
) -> TrainingResult:
    """Train the routers of all the store's blocks, all at once.

    The same store, config and device give the same weights, bit for bit on the same machine with the same number of
    threads; neither `memory`, nor the global random state, nor how often the training was interrupted matters.

    Args:
        store: what the routers read and shall decide.
        config: how to train; None is `TrainingConfig()`.
        router_width: of the routers' hidden layer, as in the adapter's configuration.
        example_weights: float32 [N], how much each of the store's N examples counts, when a question has several paths
            (rows with the same id); the loss is then a weighted cross-entropy. None is the focal loss.
        effects: regress effects in place of imitating the store's labels, which then only serve for the metrics; with
            the average effects [R, 3] to start from.
        device: where to train; None is the first GPU, or the CPU without one.
        memory: features of at most this many bytes are held on the device; larger ones are read from disk as they are
            needed. Beside them, training takes about 24 bytes a router weight and two batches of
            batch_size x R x K x d floats.
        checkpoint: file that keeps an unfinished training (four times the routers' weights); what it holds is gone on
            with. It is the caller's to remove. None keeps nothing.
        checkpoint_seconds: time between two checkpoints.
        console: where the three lines go and, on a terminal, a progress bar; None prints nothing.
        log: progress goes here as JSON lines instead.

    Raises:
        DrLLMError: fewer than two questions or classes, features that are not finite, or a loss that is not; a
            checkpoint that is damaged or of another training.
        Interrupted: on SIGINT or SIGTERM, with a last checkpoint.
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
    start = fresh_weights(len(store.layers), store.means.shape[-1], router_width, generator)
    objective: Objective
    if effects is not None:
        objective, average = effects
        start = objective.start(start, average)
    elif example_weights is not None:
        objective = WeightedImitation(torch.from_numpy(counts / counts[train_rows].mean()).to(place))
    else:
        objective = Imitation(class_weights.to(place), config.gamma)
    run = _Run(store, config, BatchReader(store, place, memory), objective, start, generator)
    if checkpoint is not None:
        learnt: list[NDArray[Any]] = [store.labels, counts]
        if effects is not None:
            learnt += [effects[0].paths, effects[0].margins, effects[1].numpy()]
        run.keep_in(checkpoint, checkpoint_seconds, learnt)
    with (
        stop_on_signals("step", loud=checkpoint is not None) as stop,
        job_progress("training", "epochs", config.epochs, console=console, log=log) as progress,
    ):
        history, best_epoch, weights = run.train(train_rows, validation_rows, stop, progress)

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
    told = (training_line(metrics, history[best_epoch - 1]), result_line(metrics), verdict_line(metrics))
    for line in told:
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


def check_labels(ids: Sequence[str], labels: NDArray[np.int8], config: TrainingConfig) -> None:
    """Refuse at once what `train_routers` would refuse once there are features: `labels` [N, R] of questions `ids`.

    Raises:
        DrLLMError: fewer than two questions or classes.
    """
    train_rows, _ = split_questions(ids, config.validation_share, config.seed)
    effective_number_weights(torch.from_numpy(labels[train_rows]), config.beta)


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
    """One training: what stays the same over its epochs, and where it is."""

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
        self.checkpoint: str | os.PathLike[str] | None = None

    def keep_in(self, checkpoint: str | os.PathLike[str], seconds: float, learnt: Sequence[NDArray[Any]]) -> None:
        """Save where the training is to this file, every `seconds`; `learnt` is what the routers shall learn."""
        self.checkpoint, self.seconds, self.saved = checkpoint, seconds, time.monotonic()
        facts = {
            "features": self.store.key,
            "learnt": [hashlib.sha256(np.ascontiguousarray(values).data).hexdigest() for values in learnt],
            **asdict(self.config),
            "router_width": self.weights["up_weight"].shape[-1],
            "device": self.reader.device.type,
        }
        self.key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def train(
        self, train_rows: Rows, validation_rows: Rows, stop: Stop, progress: JobProgress
    ) -> tuple[list[dict[str, Any]], int, Weights]:
        """All epochs: the history, the best epoch (from 1) and its weights on the CPU."""
        config = self.config
        steps_per_epoch = math.ceil(len(train_rows) / config.batch_size)
        steps = steps_per_epoch * config.epochs
        # fused: one pass over the weights instead of one for each of AdamW's operations.
        optimizer = torch.optim.AdamW(
            list(self.weights.values()), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, min(config.warmup_steps, steps // 10), steps)
        state = TrainingState(self.weights, optimizer, schedule, self.generator)
        if self.checkpoint is not None:
            load_checkpoint(self.checkpoint, state, self.key)
        labels = self.store.routed_labels[validation_rows]
        progress.update(state.epoch - 1 + state.step / steps_per_epoch)
        while state.epoch <= config.epochs and not self._out_of_patience(state):
            train_loss = self._train_epoch(state, train_rows, stop, progress)
            validation_loss, predictions = self._evaluate(validation_rows)
            state.history.append(
                {
                    "epoch": state.epoch,
                    "learning_rate": schedule.get_last_lr()[0],
                    "train_loss": train_loss,
                    "validation_loss": validation_loss,
                    **decision_metrics(labels, predictions, self.other_blocks),
                }
            )
            if validation_loss < state.best_loss:
                state.best_loss, state.best_epoch = validation_loss, state.epoch
                state.best_weights = {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}
            track({"training": state.history[-1]}, step=state.epoch)
            state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
            progress.update(state.epoch - 1, facts={"macro F1": state.history[-1]["macro_f1"]})
        return state.history, state.best_epoch, state.best_weights

    def _out_of_patience(self, state: TrainingState) -> bool:
        return self.config.patience is not None and state.epoch - 1 - state.best_epoch >= self.config.patience

    def _train_epoch(self, state: TrainingState, rows: Rows, stop: Stop, progress: JobProgress) -> float:
        """One pass over the questions in a fresh order, or the rest of one; the mean loss on the way."""
        state.order = self.generator.get_state()
        order = rows[torch.randperm(len(rows), generator=self.generator).numpy()]
        groups = list(_groups(order, self.config.batch_size))
        for batch in self.reader.batches(groups[state.step :]):
            loss, _ = self._loss(batch)
            state.loss_sum += self._finite(loss, batch) * len(batch.rows)
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
            state.schedule.step()
            state.step += 1
            self._keep(state, stop)
            progress.update(state.epoch - 1 + state.step / len(groups))
        return state.loss_sum / len(rows)

    def _keep(self, state: TrainingState, stop: Stop) -> None:
        """Save the state when it is time to, or when the run shall stop."""
        due = self.checkpoint is not None and time.monotonic() - self.saved >= self.seconds
        if self.checkpoint is not None and (due or stop.asked):
            save_checkpoint(self.checkpoint, state, self.key)
            self.saved = time.monotonic()
        if stop.asked:
            kept = "." if self.checkpoint is None else "; go on with the same command and --resume."
            raise Interrupted(f"stopped in epoch {state.epoch} of {self.config.epochs}{kept}")

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
