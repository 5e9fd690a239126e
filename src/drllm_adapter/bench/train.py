"""A whole training against the published way: the frozen model forward, and the routers backward, in every epoch."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ..adapter.calling import last_position
from ..adapter.layer import observe_router_inputs, routed_layers
from ..adapter.router import window_shares
from ..adapter.steering import force_decisions
from ..models.loading import route_base
from ..tasks import Prompt
from ..training import FeatureStore, TrainingConfig, collect_features, focal_loss, train_routers
from ..training.batches import BatchReader
from ..training.routers import Weights, fresh_weights, load_weights_into, stacked_logits
from .models import mixed_path

GOAL = 20.0
GRADIENT_GOAL = 1e-5


@dataclass(frozen=True)
class TrainingSpeed:
    """How long a training took, and how long the published way takes.

    Attributes:
        questions, epochs, batch_size: of the training.
        features_seconds, routers_seconds: ours: the one pass over the questions, and all epochs on what it stored.
        seconds: ours in all.
        published_steps: that were timed, spread over the lengths of the questions.
        published_step_seconds: median of them, for `batch_size` questions, one at a time as published.
        published_seconds: mean of them x all steps of all epochs. An extrapolation: that way is not run to its end.
        ratio: published_seconds / seconds.
        batched_seconds, batched_ratio: the same for a published way with the questions of a step as one batch, each on
            its own path, which only routing by row makes possible.
        gradient_error: of one batch in float32, ours against the gradients inside the model: the norm of the difference
            over the norm, the largest over the four stacks of router weights.
        features_bytes: on disk.
    """

    questions: int
    epochs: int
    batch_size: int
    features_seconds: float
    routers_seconds: float
    seconds: float
    published_steps: int
    published_step_seconds: float
    published_seconds: float
    ratio: float
    batched_seconds: float
    batched_ratio: float
    gradient_error: float
    features_bytes: int
    goal: float = GOAL
    gradient_goal: float = GRADIENT_GOAL

    @property
    def met(self) -> bool:
        return self.ratio >= self.goal and self.gradient_error <= self.gradient_goal

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "published_seconds_are": "extrapolated from published_steps", "met": self.met}

    def table(self) -> Table:
        """The figures for people."""
        table = Table(f"{self.epochs} epochs, {self.questions:,} questions", "ours", "published", "ratio", "goal")
        ours = f"{self.seconds:.1f} s ({self.features_seconds:.1f} features, {self.routers_seconds:.1f} epochs)"
        published = f"{self.published_seconds:,.0f} s ({self.published_steps} steps timed)"
        table.add_row("time", ours, published, f"{self.ratio:.1f}", f"{self.goal:.0f} or more")
        table.add_row("", "", f"{self.batched_seconds:,.0f} s in batches", f"{self.batched_ratio:.1f}", "")
        table.add_row("gradients", "", "", f"{self.gradient_error:.1e} apart", f"{self.gradient_goal:.0e} or less")
        return table


def bench_train(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, epochs: int, batch_size: int, steps: int, console: Console
) -> TrainingSpeed:
    """Train on the prompts with paths of as many skips as repeats as labels; time `steps` steps of the published way.

    The published way runs one question at a time and steps after `batch_size` of them. The blocks are frozen and the
    paths forced, so its backward pass, like ours, goes through the routers alone.
    """
    routed = route_base(model)
    labels = np.array([mixed_path(len(routed_layers(routed)), place) for place in range(len(prompts))], dtype=np.int8)
    config = TrainingConfig(epochs=epochs, batch_size=batch_size, patience=None)
    with tempfile.TemporaryDirectory() as folder, console.status("training"):
        started = time.perf_counter()
        store = _collect(routed, tokenizer, prompts, labels, Path(folder) / "all", batch_size)
        collected = time.perf_counter()
        train_routers(store, config, device=routed.device)
        trained = time.perf_counter()

        # Longest first, as the features were collected; the timed steps lie evenly between long and short.
        order = np.argsort([-len(prompt.text) for prompt in prompts], kind="stable")
        groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        chosen = [groups[place] for place in np.linspace(0, len(groups) - 1, min(steps, len(groups))).astype(int)]
        one_by_one, batched = (
            [_published_step(routed, tokenizer, prompts, labels, rows, size) for rows in [chosen[-1], *chosen]][1:]
            for size in (1, batch_size)
        )
        scale = len(groups) * epochs
        published, in_batches = statistics.mean(one_by_one) * scale, statistics.mean(batched) * scale
        return TrainingSpeed(
            questions=len(prompts),
            epochs=epochs,
            batch_size=batch_size,
            features_seconds=collected - started,
            routers_seconds=trained - collected,
            seconds=trained - started,
            published_steps=len(chosen),
            published_step_seconds=statistics.median(one_by_one),
            published_seconds=published,
            ratio=published / (trained - started),
            batched_seconds=in_batches,
            batched_ratio=in_batches / (trained - started),
            gradient_error=gradient_error(routed, tokenizer, [prompts[row] for row in chosen[-1]], labels[chosen[-1]]),
            features_bytes=store.means.nbytes,
        )


def gradient_error(routed: Any, tokenizer: Any, prompts: Sequence[Prompt], labels: NDArray[np.int8]) -> float:
    """How far our gradients are from those inside the model, for one batch of float32 features and random routers."""
    blocks = routed_layers(routed)
    generator = torch.Generator().manual_seed(0)
    config = blocks[0].active_config
    assert config is not None
    layers = config.routed_blocks(len(blocks))
    width = config.hidden_size
    assert width is not None
    weights = fresh_weights(len(layers), width, config.router_width, generator)
    load_weights_into(routed, weights, layers)
    inside = _inside(routed, tokenizer, prompts, labels, np.arange(len(prompts)), len(prompts))

    with tempfile.TemporaryDirectory() as folder:
        store = _collect(routed, tokenizer, prompts, labels, Path(folder) / "one", len(prompts))
        batch = next(BatchReader(store, torch.device("cpu"), memory=0).batches([np.arange(len(prompts))]))
        ours: Weights = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        focal_loss(stacked_logits(ours, batch.means, batch.windows), batch.labels, torch.ones(3)).backward()
    errors = []
    for name, weight in ours.items():
        assert weight.grad is not None
        errors.append(float((weight.grad - inside[name]).norm() / inside[name].norm()))
    return max(errors)


def _collect(
    routed: Any, tokenizer: Any, prompts: Sequence[Prompt], labels: NDArray[np.int8], folder: Path, batch_size: int
) -> FeatureStore:
    return collect_features(
        routed,
        tokenizer,
        [prompt.text for prompt in prompts],
        labels,
        folder,
        add_special_tokens=[not prompt.templated for prompt in prompts],
        batch_size=batch_size,
    )


def _published_step(
    routed: Any, tokenizer: Any, prompts: Sequence[Prompt], labels: NDArray[np.int8], rows: NDArray[np.int64], size: int
) -> float:
    """Seconds of one step inside the model, without the optimizer's part, which is the same in both ways."""
    start = time.perf_counter()
    _inside(routed, tokenizer, prompts, labels, rows, size)
    return time.perf_counter() - start


def _inside(
    routed: Any, tokenizer: Any, prompts: Sequence[Prompt], labels: NDArray[np.int8], rows: NDArray[np.int64], size: int
) -> Weights:
    """The gradients of the routers from forward passes of the model over the questions `rows`, `size` at a time."""
    blocks = routed_layers(routed)
    routers = [block.drllm_router["default"] for block in blocks]
    for router in routers:
        router.requires_grad_(True)
        router.zero_grad()
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        logits: dict[int, Tensor] = {}

        def run_router(block: int, means: Tensor, used: Tensor, logits: dict[int, Tensor] = logits) -> None:
            logits[block] = blocks[block].drllm_router["default"](means, window_shares(used, means.shape[1]))

        tokens = [
            torch.tensor(tokenizer(prompts[row].text, add_special_tokens=not prompts[row].templated)["input_ids"])
            for row in some
        ]
        masks = [torch.ones_like(row) for row in tokens]
        with force_decisions(routed, torch.from_numpy(labels[some])), observe_router_inputs(routed, run_router):
            routed(
                input_ids=nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(routed.device),
                attention_mask=nn.utils.rnn.pad_sequence(masks, batch_first=True).to(routed.device),
                use_cache=False,
                logits_to_keep=last_position(),
            )
        found = torch.stack([logits[block] for block in range(len(blocks))], dim=1)
        expected = torch.from_numpy(labels[some].astype(np.int64)).to(found.device)
        loss = focal_loss(found, expected, torch.ones(3, device=found.device))
        (loss * len(some) / len(rows)).backward()
    gradients = {}
    for name, _ in routers[0].named_parameters():
        values = [router.get_parameter(name).grad for router in routers]
        gradients[name.replace(".", "_")] = torch.stack([value.cpu() for value in values if value is not None])
    return gradients
