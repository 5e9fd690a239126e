"""What the Hub and the network do wrong: a push is whole or not at all, a load never spoils the cache, both say why.

All cases run side by side in one process, each on a repository of its own, because the client libraries wait between
their attempts.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
import pytest
from loopback import OWNER, Fault, Loopback


@dataclass(frozen=True)
class Case:
    """Faults while one repository is pushed to or loaded from.

    Attributes:
        faults: keyword arguments of `Fault`; NAME stands for the repository.
        says: what the sentence must contain; None where the libraries' own patience is enough and all must go well.
    """

    name: str
    action: str
    faults: tuple[dict[str, Any], ...]
    says: str | None


SAYS = {
    401: "hf auth login",
    403: "may not",
    404: "correct the name",
    409: "push again",
    412: "push again",
    429: "wait 1 seconds",
    500: "the Hub itself failed",
    503: "the Hub itself failed",
}
ENDPOINTS = {
    "create": r"POST /api/repos/create NAME$",
    "preupload": r"POST /api/models/me/NAME/preupload",
    "batch": r"POST /me/NAME\.git/info/lfs",
    "storage": r"PUT /lfs/me/NAME/",
    "commit": r"POST /api/models/me/NAME/commit",
    "info": r"GET /api/models/me/NAME(/revision/[^/]+)?$",
    "tree": r"GET /api/models/me/NAME/tree",
    "head": r"HEAD /me/NAME/resolve",
    "download": r"GET /(lfs|me/NAME/resolve).*NAME",
}


def case(action: str, endpoint: str, status: int, says: str | None = "", times: int | None = None) -> Case:
    headers = {"Retry-After": "1"} if status == 429 else {}
    fault = {"pattern": ENDPOINTS[endpoint], "status": status, "headers": headers, "times": times}
    often = "" if times is None else f"-{times}"
    return Case(f"{action}-{endpoint}-{status}{often}", action, (fault,), SAYS[status] if says == "" else says)


def cut(action: str, endpoint: str, after: int, says: str | None, times: int | None = None) -> Case:
    fault = {"pattern": ENDPOINTS[endpoint], "cut": after, "times": times}
    often = "" if times is None else f"-{times}"
    return Case(f"{action}-{endpoint}-cut-{after}{often}", action, (fault,), says)


CASES = [
    *(case("push", "create", status) for status in (401, 403, 404, 429, 500, 503)),
    *(case("push", "commit", status) for status in (401, 403, 404, 409, 412, 429, 500, 503)),
    *(case("push", "info", status) for status in (403, 429, 500, 503)),
    *(case("push", "preupload", status) for status in (401, 403, 404, 500)),
    case("push", "preupload", 503, None, times=1),
    case("push", "preupload", 429, None, times=1),
    *(case("push", "batch", status) for status in (403, 500)),
    case("push", "batch", 500, None, times=1),
    *(case("push", "storage", status) for status in (403, 500)),
    case("push", "storage", 503, None, times=1),
    cut("push", "storage", 1000, "connection failed"),
    cut("push", "storage", 1000, None, times=1),
    cut("push", "commit", 100, "connection failed"),
    *(case("load", "info", status) for status in (401, 403, 404, 429, 500, 503)),
    *(case("load", "tree", status) for status in (403, 500)),
    *(case("load", "head", status) for status in (403, 500, 503)),
    *(case("load", "download", status) for status in (403, 404, 500)),
    case("load", "download", 503, times=1),
    cut("load", "download", 0, "connection failed"),
    cut("load", "download", 700, None, times=1),
    Case("load-stale-etag", "load", ({"pattern": ENDPOINTS["head"], "stale_etag": True, "times": None},), None),
]


@pytest.fixture(scope="module")
def outcomes(client: Any, base: str, loopback: Loopback, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case by name: its sentence or None, the repository afterwards, and what a second load then gives."""
    if client.namespace != "me":
        pytest.skip("the real Hub does not fail on demand")
    folder = tmp_path_factory.mktemp("faults")
    adapter = folder / "adapter"
    client(jobs.make_adapter, base, str(adapter), 0)
    client.drllm("push", adapter, "me/whole")
    whole = loopback.repo("me/whole")
    work = []
    for item in CASES:
        if item.action == "load":
            repo = type(whole)("model", f"me/{item.name}", refs=dict(whole.refs))
            loopback.repos["model", repo.name] = repo
        loopback.faults += [
            Fault(**{**fault, "pattern": fault["pattern"].replace("NAME", item.name)}) for fault in item.faults
        ]
        work.append((item.action, f"me/{item.name}", str(adapter), str(folder / "cache" / item.name)))
    sentences = client(jobs.run_side_by_side, work)
    loopback.faults.clear()
    again = client(jobs.run_side_by_side, [item for item in work if item[0] == "load"])
    loaded = dict(zip([item[1] for item in work if item[0] == "load"], again, strict=True))
    return {
        item.name: (sentence, loopback.repos.get(("model", f"me/{item.name}")), loaded.get(f"me/{item.name}"))
        for item, sentence in zip(CASES, sentences, strict=True)
    }


def test_there_are_fifty_cases_with_the_others_below() -> None:
    assert len({item.name for item in CASES}) == len(CASES) >= 47


@pytest.mark.parametrize("item", CASES, ids=lambda item: item.name)
def test_whole_or_not_at_all(item: Case, outcomes: dict[str, Any]) -> None:
    sentence, repo, again = outcomes[item.name]
    if item.says is None:
        assert sentence is None
    else:
        assert re.fullmatch(r"[^\n]+\.", sentence), sentence
        assert f"me/{item.name}" in sentence
        assert item.says in sentence
        assert OWNER not in sentence
    if item.action == "push":
        held = set() if repo is None else set(repo.refs["main"].files)
        expected = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
        assert held == (expected if item.says is None else set())
        said = "the repository that was made for it stays" in (sentence or "")
        assert said == (item.says is not None and repo is not None)
    else:
        assert again is None  # the same cache, without faults: loads and is checked against its checksums


def test_a_branch_that_was_made_is_told_of(
    outcomes: dict[str, Any], client: Any, loopback: Loopback, tmp_path: Path
) -> None:
    client(jobs.make_adapter, "me/base", str(tmp_path / "adapter"), 5)
    loopback.faults.append(Fault(r"POST /api/models/me/whole/commit", 403))
    try:
        sentence = client.refuse("push", tmp_path / "adapter", "me/whole@dev")
        assert sentence.endswith("the branch that was made for it stays.")
        assert loopback.repo("me/whole").refs["dev"] is loopback.repo("me/whole").refs["main"]
        assert "stays" not in client.refuse("push", tmp_path / "adapter", "me/whole@dev")
    finally:
        loopback.faults.clear()


def test_two_pushes_at_once(outcomes: dict[str, Any], client: Any, loopback: Loopback, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        client(jobs.make_adapter, "me/base", str(folder), seed)
    sentences = client(jobs.push_after_each_other_was_prepared, "me/raced", [str(folder) for folder in folders])
    refused = [sentence for sentence in sentences if sentence is not None]
    assert len(refused) == 1
    assert "somebody else changed it" in refused[0]
    head = loopback.repo("me/raced").refs["main"]
    assert len(list(head.history())) == 2
    winner = folders[sentences.index(None)]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert head.files[name].content == (winner / name).read_bytes()


def test_a_full_disk(outcomes: dict[str, Any], client: Any, tmp_path: Path) -> None:
    sentence = client(jobs.load_with_small_files_only, "me/whole", str(tmp_path / "cache"))
    assert "no room on the disk" in sentence
    assert "me/whole" in sentence
    assert client(jobs.run_side_by_side, [("load", "me/whole", "", str(tmp_path / "cache"))]) == [None]


def test_a_revision_that_is_not_there(outcomes: dict[str, Any], client: Any) -> None:
    sentence = client.refuse("info", "me/whole@no-such-branch")
    assert "me/whole@no-such-branch" in sentence
    assert "behind the @" in sentence


def test_no_token_is_written_or_said(
    outcomes: dict[str, Any], client: Any, base: str, loopback: Loopback, tmp_path: Path
) -> None:
    """Everything that was written in the session and everything that the commands say, with and without faults."""
    client(jobs.make_adapter, base, str(tmp_path / "adapter"), 0)
    said = client.drllm("push", tmp_path / "adapter", "me/tokens", "--json", tmp_path / "push.json")
    loopback.faults.append(Fault(ENDPOINTS["commit"].replace("NAME", "tokens"), 403))
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", tmp_path / "adapter" / "training.json")
    said += client.refuse("push", tmp_path / "adapter", "me/tokens")
    loopback.faults.clear()
    said += "".join(sentence or "" for sentence, _, _ in outcomes.values())
    assert OWNER not in said
    files = [path for path in tmp_path.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    written = [path for path in files if path.stat().st_size < 2**24]  # not the sparse giants of other tests
    assert len(written) > 20
    for path in written:
        assert OWNER.encode() not in path.read_bytes(), path
    for repo in loopback.repos.values():
        for commit in repo.refs.values():
            assert not any(OWNER.encode() in file.content for file in commit.files.values())
