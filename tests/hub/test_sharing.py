"""Adapters and supervision sets pushed to a Hub and loaded from it by every usual call, over real HTTP."""

from typing import Any

import jobs
import pytest

Answer = tuple[list[float], list[list[int]]]

LOADERS = ["PeftModel", "AutoPeftModel", "AutoModel", "load_adapter", "pipeline", "load_routed"]


@pytest.fixture(scope="session")
def shared(client: Any, base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """`routers` with different adapters on main, a branch, in a pull request and a folder; `secret` is private."""
    folder = tmp_path_factory.mktemp("adapters")
    routers, secret = client.name("routers"), client.name("secret")
    answers = {name: client(jobs.make_adapter, base, str(folder / name), seed) for seed, name in enumerate("abcde")}
    client.drllm("push", folder / "a", routers, "--commit-message", "first")
    client.drllm("push", folder / "b", f"{routers}@dev/x")
    client.drllm("push", folder / "c", routers, "--create-pr")
    client(jobs.upload_folder, routers, str(folder / "d"), path_in_repo="sub")
    client.drllm("push", folder / "e", secret, "--private")
    assert len({tuple(logits) for logits, _ in answers.values()}) == 5
    return {
        "main": answers["a"],
        "branch": answers["b"],
        "pull request": answers["c"],
        "subfolder": answers["d"],
        "private": answers["e"],
        "folder": folder,  # type: ignore[dict-item]
    }


@pytest.mark.parametrize("how", LOADERS)
def test_every_call_loads_it(how: str, shared: dict[str, Answer], client: Any, base: str) -> None:
    assert client(jobs.load, how, client.name("routers"), base) == shared["main"]
    assert client(jobs.load, how, client.name("secret"), base) == shared["private"]


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "branch": ("branch", {"revision": "dev/x"}),
    "pull request": ("pull request", {"revision": "refs/pr/1"}),
    "subfolder": ("subfolder", {"subfolder": "sub"}),
}


@pytest.mark.parametrize("how", LOADERS)
@pytest.mark.parametrize("place", OPTIONS)
def test_revisions_and_folders(how: str, place: str, shared: dict[str, Answer], client: Any, base: str) -> None:
    expected, options = OPTIONS[place]
    name = client.name("routers")
    if how == "load_routed":
        name += f"/{options['subfolder']}" if "subfolder" in options else f"@{options['revision']}"
        options = {}
    assert client(jobs.load, how, name, base, **options) == shared[expected]
