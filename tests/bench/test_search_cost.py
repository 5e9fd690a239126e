"""`drllm bench cost`: the blocks are timed and nothing else, and the rest is arithmetic."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from drllm_adapter.bench.cost import measure_block
from drllm_adapter.bench.models import SHAPES, random_model
from drllm_adapter.cli import main
from drllm_adapter.cli.bench import SHAPE_NAMES


def test_only_the_blocks_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("drllm_adapter.bench.cost.now", lambda: clock[0])
    changes = {"num_hidden_layers": 2, "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16,
               "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    model = random_model("smollm2-135m", torch.float32, "cpu", **changes)

    def slow(module: Any, seconds: float) -> None:
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", run)

    for block in model.model.layers:
        slow(block, 0.05)
    slow(model.model.embed_tokens, 0.5)
    slow(model.lm_head, 0.5)
    cost = measure_block(model, rows=2, tokens=5, repetitions=1, hidden=True)
    assert cost.seconds * 2 * 5 == pytest.approx(0.05)
    assert cost.weights == sum(weight.numel() for weight in model.model.layers[0].parameters())


def test_help_names_every_shape() -> None:
    assert all(name in SHAPE_NAMES for name in SHAPES)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "cost.json"
    command = ["drllm", "bench", "cost", "--shape", "smollm2-135m", "--rows", "1", "--repetitions", "1", "--questions",
               "1000", "--tokens", "40", "--simulations", "10", "--avoided", "0.75", "--devices", "4", "--threads", "1",
               "--device", "cpu", "--output", output]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    found = json.loads(output.read_text())
    assert found["block"]["weights"] == 3_540_096
    assert found["search"]["token_passes"] == pytest.approx(1000 * 40 * 10 * 30 / 4)
    assert found["search"]["seconds"] == pytest.approx(1000 * 40 * 10 * 30 / 4 * found["block"]["seconds"] / 4)
