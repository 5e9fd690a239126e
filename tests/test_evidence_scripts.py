"""The evidence scripts run from end to end, at a size that proves nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_the_demo_script(tmp_path: Path) -> None:
    arguments = ["--questions", "60", "--test-questions", "40", "--simulations", "15", "--seeds", "0", "1"]
    command = [sys.executable, str(EXAMPLES / "evidence_demo.py"), "--output", str(tmp_path / "evidence"), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((tmp_path / "evidence" / "evidence.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    for run in result["runs"]:
        assert set(run["reports"]) == {"weighted", "effects", "price", "shortest (paper)"}
        weighted = run["reports"]["weighted"]
        assert weighted["baselines"]["routed"]["passes"] == pytest.approx(weighted["mean_passes"])
        assert len(weighted["sweep"]) > 10
    table = (tmp_path / "evidence" / "evidence.md").read_text()
    assert "| task router |" in table
    assert "oracle of chance" in table
