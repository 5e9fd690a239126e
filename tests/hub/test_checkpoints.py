"""An exported checkpoint on the Hub: pushed with its card, loaded by transformers alone."""

import json
from pathlib import Path
from typing import Any

import jobs

from drllm_adapter.demo import BASE


def test_pushed_as_it_is_exported_and_loaded_by_name(client: Any, base: str, tmp_path: Path) -> None:
    repo = client.name("static")
    printed = client.drllm("export", base, "--skip", 2, "--repeat", 5, "--output", tmp_path / "a", "--hub", repo)
    assert f"Pushed: {client.environment['HF_ENDPOINT']}/{repo}" in printed
    assert client(jobs.logits_of, repo) == client(jobs.logits_of, str(tmp_path / "a"))
    card = client(jobs.read, repo, "README.md")
    assert f"base_model: {base}" in card
    assert "base_model_relation: merge" in card
    assert f'from_pretrained("{repo}")' in card
    told = json.loads(client(jobs.read, repo, "unrolled.json"))
    assert (told["base"], len(told["base_revision"])) == (base, 40)
    # The same folder again changes nothing.
    assert "nothing has changed" in client.drllm("push", tmp_path / "a", repo)


def test_no_path_of_the_disk_goes_along(client: Any, base: str, tmp_path: Path) -> None:
    client.drllm("export", BASE, "--skip", 2, "--output", tmp_path / "a")
    repo = client.name("static-local")
    client.drllm("push", tmp_path / "a", repo)
    assert json.loads(client(jobs.read, repo, "unrolled.json"))["base"].startswith("./")
    assert str(BASE.parent) not in client(jobs.read, repo, "README.md")
    assert client(jobs.read, repo, "tokenizer.json") == (tmp_path / "a" / "tokenizer.json").read_text()
    client.drllm("push", tmp_path / "a", repo, "--base", base)
    assert f"base_model: {base}" in client(jobs.read, repo, "README.md")
