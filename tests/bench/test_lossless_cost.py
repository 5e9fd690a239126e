"""`drllm bench lossless`: the arithmetic against a simulated game of chance, and the figures against the answers."""

import dataclasses
import json
import random
import sys
from pathlib import Path

import pytest
import torch

from drllm_adapter.adapter.layer import routed_layers
from drllm_adapter.bench.lossless import Apart, Costs, LosslessSpeed, find_apart, verdict
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
    slow = LosslessSpeed(2, 1, (), 20, 10, 4, 10, 12, seconds=2.0, base_seconds=1.0, passes=14)
    assert "does not pay here: it takes an acceptance of 51%" in verdict(costs(0.5), slow)
    assert "no acceptance would make it faster" in verdict(costs(1.0, 0.1), slow)
    wrong = dataclasses.replace(slow, apart=(Apart(1, 3, 0.25),))
    assert "1 are not the base's, where its two tokens were up to 0.25 apart" in verdict(costs(0.5), wrong)


def test_an_answer_that_leaves_the_bases_is_found_with_the_distance_of_its_logits() -> None:
    """The second row differs at its third token; its logits are those of a pass over prompt and first two tokens."""
    base, _ = load_base(str(BASE), dtype="float32")
    expected = torch.tensor([[5, 6, 7], [8, 9, 10]])
    found = torch.tensor([[5, 6, 7], [8, 9, 11]])
    (apart,) = find_apart(base, [[1, 2], [3]], [20, 40], expected, found, 0)
    with torch.no_grad():
        logits = base(torch.tensor([[3, 8, 9]])).logits[0, -1]
    assert (apart.prompt, apart.token) == (40, 2)
    assert apart.gap == pytest.approx(float(logits[10] - logits[11]), abs=1e-5)


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
                      tmp_path / "asked.jsonl", "--max-new-tokens", 12, "--batch-size", 2)  # fmt: skip
    measured, found = bench["measured"], bench["costs"]
    assert isinstance(measured, dict)
    assert isinstance(found, dict)
    assert (code, measured["apart"], measured["prompts"], measured["passes"]) == (0, [], 3, 4)
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
