import gc
import os
import sys
from pathlib import Path

# Before any test imports a library that would look for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Subprocesses too: the last bits of sums depend on the number of threads, and so may the rows of a search.
os.environ["OMP_NUM_THREADS"] = "1"
# What tests of several folders share, also when one of them is run alone.
sys.path.insert(0, str(Path(__file__).parent / "conformance"))
sys.path.insert(0, str(Path(__file__).parent / "scoring"))
sys.path.insert(0, str(Path(__file__).parent))

import peft
import pytest
import torch
from hypothesis import HealthCheck, settings
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
settings.load_profile("default")


def pytest_collection_finish() -> None:
    """The garbage collector passes over what the libraries and the tests are made of: a million objects each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where transformers asks for a newer peft than there is, its own calls for adapters end in its own sentence."""
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        for item in items:
            if item.get_closest_marker("transformers_adapters"):
                item.add_marker(pytest.mark.xfail(raises=ValueError, strict=True, reason=f"peft {MIN_PEFT_VERSION}"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models are faster, and their sums always in the same order, on one thread."""
    torch.set_num_threads(1)
