"""What loading takes at its peak: never more than twice the file, whatever was done to it and whoever loads it.

This file is its own program: `python test_memory_of_loading.py FOLDER` loads, measures and prints JSON, in a process
whose allocator gives freed memory back at once (MALLOC_MMAP_THRESHOLD_), so that no load hides behind an earlier one.
"""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WEIGHTS = "adapter_model.safetensors"
SLACK = 8_000_000  # bytes: what the libraries take for themselves, whatever the size of the adapter


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_no_load_takes_more_than_twice_the_file(tmp_path: Path) -> None:
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MALLOC_MMAP_THRESHOLD_": "65536"}
    program = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert len(measured["loads"]) == 4 * 13
    assert 20e6 < measured["file"] < 40e6
    # The check can fail: a load that is not refused takes the routers' memory.
    assert all(load["grown"] > 0.9 * measured["file"] for load in measured["loads"] if load["mutation"] == "none")
    too_much = [load for load in measured["loads"] if load["grown"] > 2 * measured["file"] + SLACK]
    assert too_much == []


def peak() -> int:
    """Most bytes of resident memory since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    """Start anew from the bytes that are resident now, which are returned."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def measure(folder: Path) -> dict[str, Any]:
    import torch
    from peft import get_peft_model
    from test_mutated_adapters import MUTATIONS, load_with_peft, load_with_peft_alone, load_with_transformers, release
    from unrolled import tiny_model

    from drllm_adapter import DrLLMConfig, DrLLMError

    torch.set_num_threads(1)
    base = tiny_model("llama", hidden_size=512, num_attention_heads=8, num_key_value_heads=8).eval()
    model = get_peft_model(base, DrLLMConfig(router_width=2048))
    model.save_pretrained(folder / "original")
    base = model.unload()
    del model
    size = (folder / "original" / WEIGHTS).stat().st_size

    def load_to_train(base: Any, adapter: Path) -> None:
        base.load_adapter(str(adapter), is_trainable=True)

    def nothing(adapter: Path, choose: random.Random) -> None:
        pass

    loaders: tuple[Callable[[Any, Path], Any], ...] = (
        load_with_peft,
        load_with_peft_alone,
        load_with_transformers,
        load_to_train,
    )
    load_with_peft(base, folder / "original")  # what is imported on first use
    release(base)
    gc.freeze()  # collecting what is new is quick
    loads = []
    for name, mutation in (("none", nothing), *((mutation.__name__, mutation) for mutation in MUTATIONS)):
        damaged = folder / "damaged" / "adapter"
        shutil.copytree(folder / "original", damaged)
        mutation(damaged, random.Random(0))
        for load in loaders:
            before = forget_peak()
            outcome = "loaded"
            try:
                load(base, damaged)
            except Exception as error:
                outcome = "refused" if isinstance(error, DrLLMError) else type(error).__name__
            grown = peak() - before
            loads.append({"mutation": name, "loader": load.__name__, "outcome": outcome, "grown": grown})
            release(base)
        shutil.rmtree(folder / "damaged")
    return {"file": size, "loads": loads}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(measure(Path(sys.argv[1]))))
