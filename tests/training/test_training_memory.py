"""How much memory a training takes whose features do not fit into it; the shape is that of Llama-3.2-3B."""

import subprocess
import sys
from pathlib import Path

import pytest

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
