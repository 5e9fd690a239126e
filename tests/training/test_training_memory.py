"""How much memory a training takes whose features do not fit into it; the shape is that of Llama-3.2-3B."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate
from drllm_adapter.search import SearchConfig
from drllm_adapter.tasks import load_questions
from drllm_adapter.workflow import search_paths

ROUTERS, WINDOWS, WIDTH, BATCH = 28, 8, 3072, 16

CODE = """
import sys, threading, time
from pathlib import Path
import numpy as np
from drllm_adapter.training import FeatureStore, TrainingConfig, train_routers
questions, routers, windows, width, batch = map(int, sys.argv[2:])
path = Path(sys.argv[1])
means = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(questions, routers, windows, width))
for row in range(questions):
    means[row] = np.random.default_rng(row).standard_normal((routers, windows, width), dtype=np.float32)
means.flush()
del means
labels = np.random.default_rng(0).integers(0, 3, (questions, routers)).astype(np.int8)
store = FeatureStore(np.load(path, mmap_mode="r"), np.full(questions, windows), labels,
                     tuple(map(str, range(questions))), tuple(range(routers)))

def anonymous():  # bytes that are not pages of a file, which the kernel may drop at any time
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])

peak, before = [0], anonymous()
def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
result = train_routers(store, TrainingConfig(epochs=1, batch_size=batch), device="cpu", memory=0)
print(peak[0] - before, result.metrics["weights"], result.metrics["steps_per_epoch"], time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_weights_and_a_few_batches(tmp_path: Path) -> None:
    """The bound of docs/training.md: 24 bytes a weight and six batches, whatever the number of questions."""
    questions = 320
    shape = map(str, (questions, ROUTERS, WINDOWS, WIDTH, BATCH))
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "means.npy"), *shape], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    used, weights, steps, seconds = map(float, done.stdout.decode().split()[-4:])
    of_batch = 4 * BATCH * ROUTERS * WINDOWS * WIDTH
    print(f"{used / 1e6:.0f} MB for {weights:,.0f} weights and batches of {of_batch / 1e6:.0f} MB; "
          f"{seconds / steps:.2f} s a step")  # fmt: skip
    bound = 24 * weights + 6 * of_batch
    assert used < bound < questions / BATCH * of_batch


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_set_of_200_000_rows(tmp_path: Path) -> None:
    """Ten times the rows take ten times the time, and no more memory; seven minutes."""
    small = tmp_path / "searched"
    config = SearchConfig(method="random", simulations=8)
    search_paths(str(BASE), load_questions("khop", limit=64), small, mode="cloze", config=config)
    spent = {}
    for rows in (20_000, 200_000):
        seconds, peak = trained(repeated(small, tmp_path / str(rows), rows), tmp_path / f"adapter-{rows}")
        print(f"{rows:,} rows: {seconds:.0f} s of processor time, {peak / 1e6:.0f} MB")
        spent[rows] = seconds, peak
    assert spent[200_000][0] < 12 * spent[20_000][0]
    assert spent[200_000][1] < 1.2 * spent[20_000][1]


def repeated(searched: Path, folder: Path, count: int) -> Path:
    """The set with as many rows, whose prompts are other ones."""
    shutil.copytree(searched, folder)
    (file,) = (folder / "data").glob("*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    prompts = generate(count, seed=1)
    with pq.ParquetWriter(file, table.schema) as writer:
        for start in range(0, count, 5_000):
            part = [
                {**rows[place % len(rows)], "id": f"q{place}", "prompt": prompts[place]["question"]}
                for place in range(start, start + 5_000)
            ]
            writer.write_table(table.from_pylist(part, schema=table.schema))
    return folder


def trained(folder: Path, adapter: Path) -> tuple[float, int]:
    """Seconds of processor time of a training, and the most bytes that were not pages of a file."""
    command = ["train", folder, "--output", adapter, "--labels", "price", "--epochs", "1", "--threads", "1"]
    process = subprocess.Popen([sys.executable, "-m", "drllm_adapter", *map(str, command)], stdout=subprocess.DEVNULL)
    peak = 0
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            assert status == 0
            return usage.ru_utime + usage.ru_stime, peak
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                peak = max(peak, 1024 * int(line.split()[1]))
        time.sleep(0.05)
