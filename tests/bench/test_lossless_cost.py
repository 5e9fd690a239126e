"""`drllm bench lossless`: the arithmetic against a simulated game of chance, and the figures against the answers."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from drllm_adapter.adapter.layer import routed_layers
from drllm_adapter.bench.lossless import Costs, LosslessSpeed, verdict
from drllm_adapter.bench.models import SHAPES
from drllm_adapter.cli import main
from drllm_adapter.demo import BASE
from drllm_adapter.models.loading import load_base, route_base


def costs(draft: float, more: float = 0.0) -> Costs:
    """`more` is what each verified token adds to a pass."""
    return Costs(512, 28, 14, 0.02, draft, tuple(1 + more * n for n in range(9)))


@pytest.mark.parametrize(("acceptance", "draft"), [(0.9, 0.5), (0.6, 0.3)])
def test_the_speed_is_what_a_simulation_gives(acceptance: float, draft: float) -> None:
    """Draft, verify and count, a hundred thousand rounds with the best number of drafted tokens and with one more."""
    chance = random.Random(0)
    speed, drafted = costs(draft, 0.02).speed(acceptance)

    def simulated(number: int) -> float:
        tokens = 0
        for _ in range(100_000):
            accepted = 0
            while accepted < number and chance.random() < acceptance:
                accepted += 1
            tokens += accepted + 1
        return tokens / 100_000 / (number * draft + 1 + 0.02 * number)

    assert simulated(drafted) == pytest.approx(speed, rel=0.01)
    assert simulated(drafted + 1) < speed * 1.01
    assert speed > 1


def test_what_acceptance_it_takes() -> None:
    """One drafted token at half the price pays from one half on; at 0.82, with verification for nothing, from 0.83."""
    assert costs(0.5).needed() == 0.51
    assert costs(0.82).needed() == 0.83
    assert costs(1.0, 0.1).needed() is None
    assert costs(0.5).speed(0.3) == (1.0, 0)
    slow = LosslessSpeed(2, 0, 20, 10, 4, seconds=2.0, base_seconds=1.0, passes=14)
    assert "does not pay here: it takes an acceptance of 51%" in verdict(costs(0.5), slow)
    assert "no acceptance would make it faster" in verdict(costs(1.0, 0.1), slow)
    assert "1 are not the base's" in verdict(costs(0.5), LosslessSpeed(2, 1, 20, 10, 4, 2.0, 1.0, 14))


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: object) -> tuple[int, dict[str, object]]:
    command = ["drllm", "bench", "lossless", *arguments, "--repetitions", 3, "--output", output]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), json.loads(output.read_text())


def test_the_demo_model_answers_as_without_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the benchmark, and by `drllm generate --lossless`, which says what was accepted."""
    base, _ = load_base(str(BASE))
    model = route_base(base)
    with torch.no_grad():
        for layer in routed_layers(model):
            layer.drllm_router["default"].up.weight.zero_()
            layer.drllm_router["default"].up.bias.copy_(torch.tensor([float(layer.index in (2, 3, 4, 5)), 0.5, 0.0]))
    model.save_pretrained(tmp_path / "adapter")
    asked = [{"question": text, "answer": "no"} for text in ("ab cd", "1 2 3", "who goes there")]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    code, bench = run(monkeypatch, tmp_path / "bench.json", tmp_path / "adapter", "--task", "jsonl", "--data",
                      tmp_path / "asked.jsonl", "--max-new-tokens", 12)  # fmt: skip
    measured, found = bench["measured"], bench["costs"]
    assert isinstance(measured, dict)
    assert isinstance(found, dict)
    assert (code, measured["apart"], measured["prompts"], measured["passes"]) == (0, 0, 3, 4)
    assert measured["drafted"] > 0
    assert found["verify"][0] == 1
    assert len(found["verify"]) == 9
    answers = []
    for extra in ([], ["--lossless"]):
        made = tmp_path / f"{len(extra)}.json"
        depth = ["--depth-control", "0.5"] if not extra else []  # all blocks
        command = ["generate", tmp_path / "adapter", "ab cd", "--max-new-tokens", 9, "--json", made, *depth, *extra]
        monkeypatch.setattr(sys, "argv", ["drllm", *map(str, command)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        answers.append(json.loads(made.read_text()))
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[1]["speculation"]["drafted"] > 0
    assert "drafted tokens accepted" in capsys.readouterr().err


def test_costs_of_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block and the head are timed; a route that skips half of the blocks costs between half and all."""
    monkeypatch.setitem(SHAPES, "smollm2-135m", {**SHAPES["smollm2-135m"], "vocab_size": 64})
    code, bench = run(monkeypatch, tmp_path / "bench.json", "--shape", "smollm2-135m", "--skip", 15, "--context", 16)
    found = bench["costs"]
    assert isinstance(found, dict)
    assert code == 0
    assert (found["blocks"], found["drafting"]) == (30, 15)
    assert 0.4 < found["draft"] < 1
