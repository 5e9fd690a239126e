"""Installed, the package is known to PEFT whatever is imported first, and breaks nothing where it is itself broken."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import drllm_adapter

pytestmark = pytest.mark.skipif(
    not entry_points(group="torch.backends", name="drllm_adapter"), reason="drllm-adapter is not installed"
)


def run(code: str) -> "subprocess.CompletedProcess[str]":
    # An editable installation has a copy of the entry point's module; here the one in the checkout is meant.
    sources = Path(drllm_adapter.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(sources), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("first", ["torch", "peft", "transformers", "drllm_adapter"])
def test_peft_knows_the_method_whatever_is_imported_first(first: str) -> None:
    """PEFT may import torch, which calls the entry point while PEFT is half made."""
    done = run(f"import {first}; from peft import PeftType; PeftType.DRLLM; import torch")
    assert done.returncode == 0, done.stderr


# A module that fails when it is imported, in place of one that is not there or does not fit.
BROKEN = """
import sys
from importlib.abc import MetaPathFinder
class Broken(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            raise {error}
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.parametrize(
    ("first", "name", "error"),
    [
        ("torch", "wrapt", "ImportError('too old')"),
        ("peft", "drllm_adapter.adapter.model", "RuntimeError('no such driver')"),
    ],
)
def test_a_broken_dependency_breaks_no_other_program(first: str, name: str, error: str) -> None:
    done = run(BROKEN.format(name=name, error=error) + f"import {first}, torch; torch.ones(1); print('works')")
    assert (done.returncode, done.stdout) == (0, "works\n"), done.stderr
    assert "Router adapters are not available" in done.stderr
    assert "Traceback" not in done.stderr
