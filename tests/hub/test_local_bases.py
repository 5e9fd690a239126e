"""A base in a folder of somebody's disk: its path stays there, and others are told to name their copy."""

import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest

from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate

PUSHED = {
    "local-routers": ("adapter", "model"),
    "local-paths": ("paths", "dataset"),
}


@pytest.fixture(scope="module")
def local(client: Any, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made with a base in a folder, evaluated, pushed with and without the base's name; then that folder is renamed."""
    folder = tmp_path_factory.mktemp("somebody")
    tiny = folder / "models" / "tiny"
    shutil.copytree(BASE, tiny)
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(item) for item in generate(24, 0)))
    data = ["--task", "jsonl", "--data", folder / "questions.jsonl", "--mode", "cloze", "--dtype", "float32"]
    client.drllm("search", tiny, *data, "--simulations", 12, "--output", folder / "paths")
    client.drllm("train", folder / "paths", "--output", folder / "adapter", "--epochs", 2, "--dtype", "float32")
    client.drllm("eval", folder / "adapter", *data, "--output", folder / "adapter" / "evaluation")
    for name, (kind, _) in PUSHED.items():
        client.drllm("push", folder / kind, client.name(name))
        client.drllm("push", folder / kind, client.name(f"{name}-named"), "--base", base)
    client(jobs.upload_folder, client.name("by-hand"), str(folder / "adapter"))
    (folder / "models").rename(folder / "elsewhere")
    return folder


@pytest.mark.parametrize("named", ["", "-named"])
@pytest.mark.parametrize("name", PUSHED)
def test_no_path_of_the_disk_is_uploaded(name: str, named: str, local: Path, client: Any, base: str) -> None:
    kind, repo_type = PUSHED[name]
    texts = client(jobs.texts_of, client.name(name + named), repo_type)
    assert {"README.md", "drllm.json"} < set(texts)
    for file, text in texts.items():
        assert str(local) not in text, file
        assert str(local.parent) not in text, file
    here = {path.relative_to(local / kind).as_posix() for path in (local / kind).rglob("*.json")}
    assert any(str(local) in (local / kind / file).read_text() for file in here)  # and it was there to be left out
    expected = base if named else "./tiny"
    if repo_type == "model":
        assert {"training.json", "evaluation/report.json"} < set(texts)
        assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == expected
        assert json.loads(texts["training.json"])["supervision"]["base_model"] == expected
        assert json.loads(texts["evaluation/report.json"])["adapter"] == "./adapter"
        assert f"base_model: {base}\n" in texts["README.md"] if named else "base_model:" not in texts["README.md"]
    else:
        assert json.loads(texts["search.json"])["base_model"] == expected
        assert f"'base_model': '{expected}'" in texts["data/train-00000-of-00001.parquet"]
    assert ("--base tiny" in texts["README.md"]) == (not named)


def test_a_dry_run_says_what_becomes_of_the_base(local: Path, client: Any, base: str, tmp_path: Path) -> None:
    for more, expected in (([], "./tiny"), (["--base", f"{base}@main"], f"{base}@main")):
        out = client.drllm("push", local / "adapter", client.name("dry"), *more, "--dry-run", "--json", tmp_path / "x")
        assert f"base model: {expected}" in out
        assert ("push with --base owner/name" in out) == (not more)
        facts = json.loads((tmp_path / "x").read_text())
        assert facts["base"] == expected
        assert str(local) not in json.dumps(facts)
        (tmp_path / "x").unlink()


def test_with_its_name_on_the_hub_it_loads_by_itself(local: Path, client: Any, base: str, tmp_path: Path) -> None:
    own = client(jobs.load, "PeftModel", str(local / "adapter"), base)
    for how in ("AutoPeftModel", "AutoModel", "pipeline", "load_routed"):
        assert client(jobs.load, how, client.name("local-routers-named"), base) == own
    client.drllm("train", client.name("local-paths-named"), "--output", tmp_path / "adapter", "--epochs", 2,
                 "--dtype", "float32")  # fmt: skip
    weights = [
        (folder / "adapter_model.safetensors").read_bytes() for folder in (tmp_path / "adapter", local / "adapter")
    ]
    assert weights[0] == weights[1]


def test_without_it_every_command_asks_for_it_in_one_sentence(local: Path, client: Any, tmp_path: Path) -> None:
    data = ["--task", "khop", "--limit", 4, "--mode", "cloze"]
    for name, folder in (("local-routers", "./tiny"), ("by-hand", str(local / "models" / "tiny"))):
        repo = client.name(name)
        assert folder in client.drllm("info", repo)
        for command in (["generate", repo, "x"], ["eval", repo, *data], ["eval", repo, "--lm-eval", "piqa"]):
            sentence = client.refuse(*command)
            assert f"names the folder {folder!r}" in sentence
            assert "--base" in sentence
    sentence = client.refuse("train", client.name("local-paths"), "--output", tmp_path / "x")
    assert "names the folder './tiny'" in sentence
    assert "--base" in sentence
    assert not (tmp_path / "x").exists()
    sentence = client.refuse("generate", local / "adapter", "x")  # the same of what is here
    assert "no such folder here" in sentence
    assert "--base" in sentence


def test_with_a_copy_of_the_base_all_of_it_works(local: Path, client: Any, base: str, tmp_path: Path) -> None:
    copy = local / "elsewhere" / "tiny"
    own = client(jobs.load, "PeftModel", str(local / "adapter"), base)
    for name in ("local-routers", "by-hand"):
        for how in ("PeftModel", "load_adapter", "load_adapter of PEFT"):
            assert client(jobs.load, how, client.name(name), str(copy)) == own
        assert "8 blocks" in client.drllm("generate", client.name(name), "x", "--base", copy, "--show-path")
    options = ["--base", copy, "--epochs", 1, "--dtype", "float32"]
    client.drllm("train", client.name("local-paths"), "--output", tmp_path / "adapter", *options)


@pytest.mark.parametrize("how", ["AutoPeftModel", "AutoModel", "pipeline"])
def test_the_libraries_name_the_folder_that_they_cannot_load(how: str, local: Path, client: Any) -> None:
    """As for a LoRA: PEFT and transformers load the base first, before they know whose adapter this is."""
    for name, folder in (("local-routers", "./tiny"), ("by-hand", str(local / "models" / "tiny"))):
        said = client(jobs.load_or_say, how, client.name(name))
        assert said is not None
        assert folder in said, said


def test_a_name_that_cannot_be_the_bases_is_refused(local: Path, client: Any, base: str) -> None:
    other = client.name("other-base")
    config = json.loads((BASE / "config.json").read_text())
    client(jobs.upload_folder, other, str(BASE), allow_patterns=["README.md"])
    client(jobs.upload_file, other, "config.json", json.dumps({**config, "num_hidden_layers": 5}).encode())
    for kind in ("adapter", "paths"):
        for name, said in ((other, "made for"), (client.name("no-base"), "Hub"), (local / "elsewhere" / "tiny", "Hub")):
            sentence = client.refuse("push", local / kind, client.name("dry"), "--base", name)
            assert str(name) in sentence
            assert said in sentence


def test_the_base_that_ships_with_the_package_needs_no_name(client: Any, tmp_path: Path) -> None:
    """Wherever it was installed where the adapter was made."""
    name = client.name("demo-routers")
    own = client(jobs.make_adapter, str(BASE), str(tmp_path / "adapter"), 4)
    assert "--base" not in client.drllm("push", tmp_path / "adapter", name)
    texts = client(jobs.texts_of, name, "model")
    assert all(str(BASE.parent) not in text for text in texts.values())
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == "./drllm_adapter/demo/base"
    assert client(jobs.load, "load_routed", name, "") == own
    assert client(jobs.load_by_card, name) == own
    assert "8 blocks" in client.drllm("generate", name, "x", "--show-path")


def test_pefts_own_push_leaves_the_path_out_and_says_so(local: Path, client: Any, base: str) -> None:
    name = client.name("peft-local")
    answer, said = client(jobs.warnings_of_a_push, str(local / "elsewhere" / "tiny"), name, 3)
    assert any("./tiny" in line and "base_model_name_or_path" in line for line in said)
    assert client(jobs.load, "PeftModel", name, base) == answer
    texts = client(jobs.texts_of, name, "model")
    assert all(str(local) not in text for text in texts.values())
    assert "--base tiny" in texts["README.md"]
