"""An unfinished training on disk: everything that its next step depends on, so that it goes on bit for bit."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DrLLMError
from ..files import replacing
from .routers import Weights

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """Where a training is.

    Attributes:
        weights: being trained.
        optimizer, schedule: of these weights, AdamW and a learning-rate schedule.
        generator: draws the order of the questions.
        epoch: under way, from 1.
        step: batches of it that are done.
        loss_sum: of their questions' losses.
        order: state of the generator when the epoch began.
        history: one entry for each finished epoch.
        best_loss, best_epoch, best_weights: of the finished epochs.
    """

    weights: Weights
    optimizer: torch.optim.Optimizer
    schedule: Any
    generator: torch.Generator
    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    history: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = float("inf")
    best_epoch: int = 0
    best_weights: Weights = field(default_factory=dict)


def save_checkpoint(path: str | os.PathLike[str], state: TrainingState, key: str) -> None:
    """Write the state, whole or not at all.

    Args:
        key: of everything that the training depends on.

    Raises:
        DrLLMError: the disk is full or the folder cannot be written.
    """
    moments = state.optimizer.state_dict()["state"]
    tensors = {f"weights.{name}": weight.detach() for name, weight in state.weights.items()}
    tensors |= {f"best.{name}": weight for name, weight in state.best_weights.items()}
    tensors |= {f"{name}.{index}": values[name] for index, values in moments.items() for name in _MOMENTS}
    tensors["order"] = state.order
    schedule = {name: value for name, value in state.schedule.state_dict().items() if name != "lr_lambdas"}
    numbers = {
        "key": key,
        "epoch": state.epoch,
        "step": state.step,
        "loss_sum": state.loss_sum,
        "history": state.history,
        "best_loss": state.best_loss,
        "best_epoch": state.best_epoch,
        "schedule": schedule,
    }
    with replacing(path) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary,
                  metadata={"state": json.dumps(numbers)})  # fmt: skip


@torch.no_grad()
def load_checkpoint(path: str | os.PathLike[str], state: TrainingState, key: str) -> bool:
    """Put what was saved into the fresh `state`; False when nothing was.

    Raises:
        DrLLMError: the file is damaged or of another training.
    """
    if not Path(path).exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DrLLMError(f"the checkpoint {path} is damaged; remove it to train from the beginning.") from error
    if numbers.pop("key") != key:
        raise DrLLMError(
            f"the checkpoint {path} must be of a training with the same questions, labels and constants, but it is of "
            f"another one; remove it or choose another folder."
        )
    for name, weight in state.weights.items():
        weight.copy_(tensors[f"weights.{name}"])
    fresh = state.optimizer.state_dict()
    places = fresh["param_groups"][0]["params"]
    fresh["state"] = {index: {name: tensors[f"{name}.{index}"] for name in _MOMENTS} for index in places}
    schedule = numbers.pop("schedule")
    fresh["param_groups"][0]["lr"] = schedule["_last_lr"][0]
    state.optimizer.load_state_dict(fresh)
    state.schedule.load_state_dict({**schedule, "lr_lambdas": [None]})
    state.order = tensors["order"]
    state.generator.set_state(state.order)
    state.best_weights = {name: tensors[f"best.{name}"] for name in state.weights if f"best.{name}" in tensors}
    for name, value in numbers.items():
        setattr(state, name, value)
    return True
