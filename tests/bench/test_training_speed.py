"""`drllm bench train` on the embedded model: figures that add up, and gradients that are those inside the model."""

import json
import sys
from pathlib import Path

import pytest

from drllm_adapter.cli import main


def test_the_training_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "bench.json"
    arguments = ["train", "--limit", "40", "--epochs", "2", "--steps", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["drllm", "bench", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    bench = json.loads(output.read_text())
    assert bench["gradient_error"] < 1e-5
    assert bench["seconds"] == pytest.approx(bench["features_seconds"] + bench["routers_seconds"])
    assert bench["ratio"] == pytest.approx(bench["published_seconds"] / bench["seconds"])
    assert bench["features_bytes"] == 40 * 8 * 8 * 96 * 4
    assert bench["met"] is (bench["ratio"] >= 20)
    assert stop.value.code == (0 if bench["met"] else 1)
