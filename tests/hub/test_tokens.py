"""Tokens go to the Hub and nowhere else: not into the loudest logs, outputs, exceptions, caches or repositories."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
from loopback import OWNER, Fault, Loopback

UNKNOWN = "an-expired-token-that-looks-like-no-token"
DOORS = ("PeftModel", "AutoPeftModel", "AutoModel", "load_adapter", "pipeline", "load_routed")


def test_no_token_is_logged_said_or_kept(client: Any, base: str, loopback: Loopback, tmp_path: Path) -> None:
    if client.namespace != "me":
        pytest.skip("the real Hub does not fail on demand")
    adapter, home = tmp_path / "adapter", tmp_path / "home"
    client(jobs.make_adapter, base, str(adapter), 0)
    faults = [
        Fault(r"POST /api/models/me/loud-403/commit", 403),
        Fault(r"PUT /lfs/me/loud-cut/", cut=1000, times=1),
        Fault(r"POST /api/models/me/loud-lost/commit", cut=100),
    ]
    loopback.faults += faults
    environment = {**os.environ, **client.environment, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_DEBUG": "1"}
    environment.pop("TRANSFORMERS_VERBOSITY")
    program = "import jobs, sys; jobs.share_loudly(*sys.argv[1:])"
    paths = [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", program, base, str(adapter), str(tmp_path / "again"), UNKNOWN],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    for fault in faults:
        loopback.faults.remove(fault)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    # It did all that it should, and loudly.
    assert all(fault.happened for fault in faults)
    assert f"pushed me/loud, {len(DOORS)} doors" in said
    assert said.count("Traceback") >= 10
    for logger in ("huggingface_hub", "httpx2?", "httpcore2?", "datasets", "filelock"):
        assert re.search(rf"^(DEBUG|INFO) {logger}[.:\w]* ", said, re.M), logger
    for token in (OWNER, UNKNOWN):
        lines = [line for line in said.splitlines() if token in line]
        assert lines == []
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 20
    for path in kept:
        content = path.read_bytes()
        assert not any(token.encode() in content for token in (OWNER, UNKNOWN)), path
    for (_, name), repo in loopback.repos.items():
        for commit in (commit for ref in repo.refs.values() for commit in ref.history()):
            for path, file in commit.files.items():
                assert not any(token.encode() in file.content for token in (OWNER, UNKNOWN)), (name, path)
