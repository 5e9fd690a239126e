"""The commands in several processes, started by `accelerate launch` as users start them, on the embedded model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command
from safetensors.torch import load_file

from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate

DATA = Path("data") / "train-00000-of-00001.parquet"
ONE = [sys.executable, "-m", "drllm_adapter"]


def launch(processes: int) -> list[str]:
    """`--multi_gpu` is what makes accelerate start several processes; without GPUs they run on the CPU."""
    options = ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", processes]
    return [*map(str, [*command, *options]), "-m", "drllm_adapter"]


def run(command: Sequence[Any], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)


def search(output: str, *more: Any) -> list[Any]:
    return ["search", BASE, "--task", "jsonl", "--data", "train.jsonl", "--mode", "cloze", "--simulations", 20,
            "--bundle", 4, "--output", output, "--dtype", "float32", *more]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, and in `one` what one process found."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, generate(50, 0))))
    assert command(*search("one"), folder=folder) == 0
    return folder


def test_processes_share_a_search(folder: Path) -> None:
    name = "shared"
    done = run([*launch(3), *search(name, "--log", "json")], folder)
    assert done.returncode == 0, done.stderr
    assert (folder / name / DATA).read_bytes() == (folder / "one" / DATA).read_bytes()
    assert done.stdout.count("Saved in") == 1  # the main process speaks for all
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines].count("start") == 1
    last = [line for line in lines if line["event"] == "progress"][-1]
    assert (last["done"], last["total"]) == (50, 50)
    found, alone = (json.loads((folder / each / "summary.json").read_text()) for each in (name, "one"))
    assert {**found, "seconds": 0, "paths_per_second": 0} == {**alone, "seconds": 0, "paths_per_second": 0}
    assert not (folder / name / ".lock").exists()


def test_a_refusal_is_said_once(folder: Path) -> None:
    done = run([*launch(2), *search("one")], folder)
    assert done.returncode != 0
    assert done.stderr.count("already holds a supervision set") == 1


def test_a_process_that_dies_is_replaced_and_the_job_can_go_on(folder: Path) -> None:
    """One of two processes that share a folder, without a launcher that would end the other, is killed."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    begun = list(map(str, [*ONE, *search("dies")]))
    both = [
        subprocess.Popen(begun, cwd=folder, env={**os.environ, **address, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    while not list((folder / "dies" / "shards").glob("*.parquet")):
        assert both[0].poll() is None
        time.sleep(0.01)
    both[1].kill()
    assert both[0].wait(120) == 0
    assert (folder / "dies" / DATA).read_bytes() == (folder / "one" / DATA).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_search_and_says_how_to_go_on(folder: Path, number: signal.Signals) -> None:
    output = folder / number.name
    begun = list(map(str, [*ONE, *search(output.name)]))
    process = subprocess.Popen(begun, cwd=folder, stderr=subprocess.PIPE, text=True)
    while not (started := list((output / "shards").glob("*.parquet"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait() == 130
    assert "stopping after the paths in flight" in said
    saved = len(list((output / "shards").glob("*.parquet")))
    assert saved >= len(started)
    assert f"what was scored for others is saved in {output.name}; go on with the same command and --resume" in said
    assert command(*search(output.name, "--resume"), folder=folder) == 0
    assert (output / DATA).read_bytes() == (folder / "one" / DATA).read_bytes()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_processes_share_training_refinement_and_evaluation(folder: Path) -> None:
    """Forward passes, the prompts of a step and the batches of an evaluation are shared; results are those of one."""
    train = ["train", "one", "--epochs", 2, "--dtype", "float32", "--output"]
    evaluate = ["eval", "adapter 1", "--task", "jsonl", "--data", "train.jsonl", "--mode", "cloze", "--batch-size", 8,
                "--dtype", "float32", "--output"]  # fmt: skip
    refine = ["refine", "adapter 1", "--task", "jsonl", "--data", "train.jsonl", "--mode", "cloze", "--max-steps", 2,
              "--batch-size", 8, "--num-generations", 4, "--dtype", "float32", "--output"]  # fmt: skip
    jobs = ((train, "adapter"), (refine, "refined"), (evaluate, "evaluation"))
    for begun, name in jobs:
        assert command(*begun, f"{name} 1", folder=folder) == 0
    # One launch for the three, since starting processes is what takes long.
    script = folder / "all.py"
    script.write_text(
        f"import sys\nfrom drllm_adapter.cli import main\n"
        f"for arguments in {[[*map(str, begun), f'{name} 2'] for begun, name in jobs]}:\n"
        f"    sys.argv[1:] = arguments\n    try: main()\n    except SystemExit as stop: assert not stop.code\n"
    )
    done = run([*launch(2)[:-2], script], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved in") == 3
    for name in ("adapter {}/adapter_model.safetensors", "evaluation {}/report.json"):
        assert (folder / name.format(1)).read_bytes() == (folder / name.format(2)).read_bytes()
    # The gradients of a step are a sum over processes, whose last bits differ: little beside what the steps moved.
    start, alone, both = (
        torch.cat([weight.flatten() for weight in load_file(folder / name / "adapter_model.safetensors").values()])
        for name in ("adapter 1", "refined 1", "refined 2")
    )
    assert (both - alone).norm() < 1e-3 * (alone - start).norm()
    reports = [json.loads((folder / f"refined {name}" / "training.json").read_text()) for name in "12"]
    assert len({report["lines"][1].split(" in ")[0] for report in reports}) == 1  # paths that were scored
    assert not {".lock", "features", "begun.json"} & {path.name for path in (folder / "adapter 2").iterdir()}
