"""Adapters and supervision sets pushed to a Hub and loaded from it by every usual call, over real HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from client import Client
from loopback import READER, STRANGER, Loopback

Answer = tuple[list[float], list[list[int]]]

LOADERS = ["PeftModel", "AutoPeftModel", "AutoModel", "load_adapter", "load_adapter of PEFT", "pipeline", "load_routed"]


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
    if (how, place) == ("AutoPeftModel", "subfolder"):
        pytest.skip("PEFT looks for the base in the subfolder, too")
    name = client.name("routers")
    if how == "load_routed":
        name += f"/{options['subfolder']}" if "subfolder" in options else f"@{options['revision']}"
        options = {}
    assert client(jobs.load, how, name, base, **options) == shared[expected]


@pytest.mark.parametrize("how", LOADERS)
def test_a_cache_of_ones_own(how: str, shared: dict[str, Answer], client: Any, base: str, tmp_path: Path) -> None:
    if how == "load_routed":
        pytest.skip("the commands use the cache of HF_HOME")
    name, cache = client.name("routers"), str(tmp_path / "cache")
    if how == "pipeline":
        assert client(jobs.load, how, name, base, cache_dir=cache) == shared["main"]
        return
    options = {"cache_dir": cache}
    assert client(jobs.load, how, name, base, **options) == shared["main"]
    assert list((tmp_path / "cache").glob("models--*routers*/snapshots/*/adapter_model.safetensors"))
    assert client(jobs.load, how, name, base, local_files_only=True, **options) == shared["main"]


@pytest.fixture(scope="session")
def offline(shared: dict[str, Answer], client: Any, base: str) -> Iterator[Any]:
    """A process with the same cache and HF_HUB_OFFLINE, after everything has been loaded once."""
    assert client(jobs.load, "load_routed", client.name("routers"), base) == shared["main"]
    made = Client({**client.environment, "HF_HUB_OFFLINE": "1"}, client.namespace)
    yield made
    made.close()


@pytest.mark.parametrize("how", LOADERS)
def test_offline(how: str, shared: dict[str, Answer], offline: Any, client: Any, base: str) -> None:
    assert offline(jobs.load, how, client.name("routers"), base) == shared["main"]


def test_offline_without_a_cached_copy(offline: Any) -> None:
    sentence = offline.refuse("info", "me/never-loaded")
    assert "me/never-loaded" in sentence
    assert "HF_HUB_OFFLINE" in sentence


def test_peft_pushes_the_same_files_and_card(client: Any, base: str, shared: dict[str, Answer]) -> None:
    name = client.name("pushed-by-peft")
    answer = client(jobs.push_with_peft, base, name, 7, private=True)
    assert client(jobs.load, "AutoModel", name, base) == answer
    assert set(client(jobs.files_of, name)) - {".gitattributes"} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    card = client(jobs.read, name, "README.md")
    assert "base_model_relation: adapter" in card
    assert "[More Information Needed]" not in card
    assert "layer-routing" in card


def test_an_adapter_of_another_name_lies_in_its_folder(client: Any, base: str, shared: dict[str, Answer]) -> None:
    """Where PEFT saves it, whatever the method; the calls that load a LoRA from there load routers, and no others."""
    name, lora = client.name("named"), client.name("named-lora")
    answer = client(jobs.push_with_peft, base, name, 8, "mine")
    client(jobs.push_lora, base, lora, "mine")
    files = set(client(jobs.files_of, name)) - {".gitattributes"}
    assert files == {"README.md", "mine/adapter_config.json", "mine/adapter_model.safetensors"}
    assert files == set(client(jobs.files_of, lora)) - {".gitattributes"}
    for how in ("PeftModel", "AutoModel", "load_adapter", "load_adapter of PEFT"):
        assert client(jobs.load, how, name, base, subfolder="mine") == answer
    assert client(jobs.load, "load_routed", f"{name}/mine", base) == answer
    for repo in (name, lora):
        for options in ({}, {"subfolder": "mine"}):
            for how in ("AutoPeftModel", "pipeline"):
                assert client(jobs.load_or_say, how, repo, **options) is not None
    card = client(jobs.read, name, "README.md")
    assert "layer-routing" in card
    assert f"base_model: {base}" in card
    assert f"drllm generate {name}/mine" in card
    assert client(jobs.load_by_card, name) == answer
    assert client(jobs.load_by_card, client.name("routers"))  # of an adapter at the root, too
    client(jobs.upload_file, name, "README.md", (card + "\nMine, all mine.\n").encode())
    client(jobs.push_with_peft, base, name, 9, "mine")
    assert "Mine, all mine." in client(jobs.read, name, "README.md")


def test_a_push_is_one_commit(client: Any, base: str, tmp_path: Path) -> None:
    name = client.name("one-commit")
    client(jobs.make_adapter, base, str(tmp_path / "adapter"), 0)
    (tmp_path / "adapter" / "notes-to-self.txt").write_text("not for others")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ""}
    dry = ("push", tmp_path / "adapter", name, "--dry-run", "--json", tmp_path / "push.json")
    printed = client.drllm(*dry, environment=nowhere)
    assert "Nothing was uploaded, and the Hub was not asked" in printed
    assert "adapter_model.safetensors" in printed
    assert "library_name: peft" in printed
    assert json.loads((tmp_path / "push.json").read_text())["head"] is None
    assert "not a repository" in client.refuse("info", name) or "Hub" in client.refuse("info", name)
    printed = client.drllm("push", tmp_path / "adapter", name, "--commit-message", "routers for everybody")
    assert "Pushed: http" in printed
    titles = client(jobs.titles_of, name)
    assert titles[0] == "routers for everybody"
    assert len(titles) == 2  # the Hub makes the first
    assert "notes-to-self.txt" not in client(jobs.files_of, name)
    before = client(jobs.files_of, name)
    printed = client.drllm("push", tmp_path / "adapter", name, "--create-pr", "--commit-message", "a proposal")
    assert "Nothing was pushed, because nothing has changed since: http" in printed
    assert "must be owner/name" in client.refuse("push", tmp_path / "adapter", "r3")
    assert client(jobs.titles_of, name) == titles
    assert client(jobs.files_of, name) == before


def test_what_somebody_wrote_into_the_card_on_the_hub_stays(client: Any, base: str, tmp_path: Path) -> None:
    name = client.name("edited")
    client(jobs.make_adapter, base, str(tmp_path / "adapter"), 0)
    client.drllm("push", tmp_path / "adapter", name)
    card = client(jobs.read, name, "README.md")
    client(jobs.upload_file, name, "README.md", (card + "\nMine, all mine.\n").encode())
    client(jobs.make_adapter, base, str(tmp_path / "adapter"), 1)
    client.drllm("push", tmp_path / "adapter", name)
    assert "Mine, all mine." in client(jobs.read, name, "README.md")


def test_commands_take_names(client: Any, shared: dict[str, Answer], base: str, tmp_path: Path) -> None:
    name = client.name("routers")
    out = client.drllm("generate", f"{name}@dev/x", "a>b from a 1 hops:", "--show-path", "--max-new-tokens", 1)
    assert "8 blocks" in out
    assert base in client.drllm("info", f"{name}/sub")
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "a>b from a 1 hops:", "choices": ["a", "b"], "answer": 1}\n')
    data = ["--task", "jsonl", "--data", questions, "--mode", "cloze", "--dtype", "float32"]
    client.drllm("eval", name, *data, "--output", tmp_path / "evaluation")
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert report["adapter"] == name


def test_private_and_gated(client: Any, shared: dict[str, Answer], base: str, loopback: Loopback) -> None:
    if client.namespace != "me":
        pytest.skip("needs a second account")
    stranger, nobody = {"HF_TOKEN": STRANGER}, {"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    for environment in (stranger, nobody):
        client(jobs.forget_cache)
        assert "private" in client.refuse("info", "me/secret", environment=environment)
    repo = loopback.repo("me/routers")
    repo.gated = True
    try:
        client(jobs.forget_cache)
        assert "owner decides" in client.refuse("info", "me/routers", environment=stranger)
        assert "me/base" in client.drllm("info", "me/routers")
    finally:
        repo.gated = False
    for environment, expected in ((stranger, "may not"), ({"HF_TOKEN": READER}, "may not"), (nobody, "log in")):
        sentence = client.refuse("push", shared["folder"] / "a", "me/other", environment=environment)  # type: ignore[operator]
        assert "me/other" in sentence
        assert expected in sentence
    assert ("model", "me/other") not in loopback.repos


def test_a_base_knows_its_commit(client: Any, base: str) -> None:
    by_name, by_revision, commit = client(jobs.revision_of_base, base)
    assert by_name == by_revision == commit
