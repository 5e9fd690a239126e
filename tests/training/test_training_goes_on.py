"""Interrupted trainings end with the weights of undisturbed ones, bit for bit."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stores import Numbers, learnable_store, random_labels, random_prompts, routed_model

from drllm_adapter import DrLLMError
from drllm_adapter.errors import Interrupted
from drllm_adapter.training import TrainingConfig, collect_features, train_routers
from drllm_adapter.training import trainer as trainer_module
from drllm_adapter.training.batches import BatchReader
from drllm_adapter.training.collect import _Collector
from drllm_adapter.training.routers import Weights

CONFIG = TrainingConfig(epochs=4, batch_size=16, warmup_steps=5, patience=2, seed=3)
STORE = learnable_store(100)


class Cut(BaseException):
    """The end of a process, as far as it can be played inside one."""


def train(checkpoint: Path | None, cut_after: int | None = None, every: float = 0.0, **more: Any) -> Any:
    """Train; cut off after so many losses were computed, those of the validation included."""
    finite, calls = trainer_module._Run._finite, []

    def cut(self: Any, *args: Any) -> float:
        calls.append(args)
        if cut_after is not None and len(calls) > cut_after:
            raise Cut
        return finite(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module._Run, "_finite", cut)
        return train_routers(
            STORE, more.get("config", CONFIG), router_width=8, checkpoint=checkpoint, checkpoint_seconds=every
        )


def same(first: Any, second: Any) -> bool:
    weights = all(torch.equal(first.weights[name], second.weights[name]) for name in second.weights)
    return weights and (first.history, first.best_epoch) == (second.history, second.best_epoch)


@pytest.fixture(scope="module")
def whole() -> Any:
    return train(None)


@hypothesis_settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 25), min_size=1, max_size=3))
def test_a_training_that_was_cut_goes_on_bit_for_bit(
    cuts: list[int], whole: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = tmp_path_factory.mktemp("cut") / "checkpoint.safetensors"
    for cut_after in cuts:
        try:
            train(checkpoint, cut_after)
        except Cut:
            assert checkpoint.exists()
    assert same(train(checkpoint), whole)


def test_only_what_is_due_is_saved(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        train(tmp_path / "checkpoint.safetensors", 12, every=60)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_signal_saves_and_stops(tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    loss = trainer_module._Run._loss

    def interrupt(self: Any, batch: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module._Run, "_loss", interrupt)
        with pytest.raises(Interrupted, match="stopped in epoch 1 of 4; go on with the same command and --resume"):
            train_routers(STORE, CONFIG, router_width=8, checkpoint=checkpoint)
    assert same(train(checkpoint), whole)


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Cut):
        train(checkpoint, 5)
    with pytest.raises(DrLLMError, match="of another one"):
        train(checkpoint, config=TrainingConfig(epochs=5))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    with pytest.raises(DrLLMError, match="damaged"):
        train(checkpoint)


def slowly_trained(folder: Path) -> Weights:
    """Features and routers trained on them, slow enough to be killed on the way."""
    read, run = BatchReader._read, _Collector.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchReader, "_read", lambda self, rows: (time.sleep(0.01), read(self, rows))[1])
        patch.setattr(_Collector, "run", lambda self, rows: (time.sleep(0.05), run(self, rows))[1])
        folder.mkdir(exist_ok=True)
        store = collect_features(
            routed_model(), Numbers(), random_prompts(40), random_labels(40), folder / "features", batch_size=4
        )
        return train_routers(
            store, TrainingConfig(epochs=20, patience=20), router_width=8, checkpoint=folder / "checkpoint",
            checkpoint_seconds=0.1,
        ).weights  # fmt: skip


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import torch
torch.set_num_threads(1)
from test_training_goes_on import slowly_trained
print("ready", flush=True)
slowly_trained(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("rounds", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_nothing(tmp_path: Path, rounds: int) -> None:
    here = Path(__file__).parent
    code = KILLED.format(tests=str(here.parent), here=str(here))
    start = time.perf_counter()
    expected = slowly_trained(tmp_path / "whole")
    whole = time.perf_counter() - start
    moments, number = random.Random(rounds), 0
    for round_ in range(rounds):
        folder = tmp_path / str(number)
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.02, 0.9) * whole)
        process.kill()
        process.wait()
        if round_ % 3 == 2 or round_ == rounds - 1:
            found = slowly_trained(folder)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            number += 1
