"""A Space with the page of an adapter, pushed to a Hub over real HTTP."""

import json
from pathlib import Path
from typing import Any

import jobs
import yaml


def front_matter(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return found


def test_a_space_carries_the_adapter_or_names_it(client: Any, base: str, tmp_path: Path) -> None:
    adapter, space = tmp_path / "adapter", client.name("routing-demo")
    answer = client(jobs.make_adapter, base, str(adapter), 0)
    dry = client.drllm("push", adapter, "--space", space, "--dry-run", "--json", tmp_path / "dry.json",
                       environment={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ""})  # fmt: skip
    assert "Nothing was uploaded, and the Hub was not asked" in dry
    planned = json.loads((tmp_path / "dry.json").read_text())
    assert planned["kind"] == "space"
    pushed = client.drllm("push", adapter, "--space", space)
    assert "Pushed: http" in pushed
    assert f"drllm card {adapter} --space {space}" in pushed
    files = client(jobs.files_of, space, repo_type="space")
    assert sorted(planned["files"]) == [name for name in files if name != ".gitattributes"]
    assert {"app.py", "requirements.txt", "README.md", "adapter/adapter_config.json"} <= set(files)
    assert len(client(jobs.titles_of, space, repo_type="space")) == 2  # the Hub makes the first
    about = front_matter(client(jobs.read, space, "README.md", repo_type="space"))
    assert (about["sdk"], about["app_file"], about["models"]) == ("gradio", "app.py", [base])
    assert about["sdk_version"][:2] == "6."
    assert client(jobs.read, space, "requirements.txt", repo_type="space").startswith("drllm-adapter[app]==")
    code = client(jobs.read, space, "app.py", repo_type="space")
    compile(code, "app.py", "exec")
    assert "from drllm_adapter.app.page import launch" in code
    assert 'launch("adapter")' in code
    assert client(jobs.load_of_space, space, str(tmp_path / "copy")) == answer

    # What somebody wrote into its README stays; of an adapter on the Hub, the Space has the name alone.
    card = client(jobs.read, space, "README.md", repo_type="space").replace(
        "---\n\n#", "license: mit\n---\n\nMine.\n\n#"
    )
    client(jobs.upload_file, space, "README.md", card.encode(), repo_type="space")
    name = client.name("shown")
    client.drllm("push", adapter, name)
    client.drllm("push", name, "--space", space)
    card = client(jobs.read, space, "README.md", repo_type="space")
    assert "Mine." in card
    assert front_matter(card)["license"] == "mit"
    assert front_matter(card)["models"] == [name, base]
    assert f'launch("{name}")' in client(jobs.read, space, "app.py", repo_type="space")


def test_what_cannot_be_a_space_is_refused(client: Any, base: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    client(jobs.make_adapter, base, str(adapter), 0)
    assert "none were given" in client.refuse("push", adapter)
    assert "both were given" in client.refuse("push", adapter, "me/a", "--space", "me/b")
    assert "must be owner/name" in client.refuse("push", adapter, "--space", "b", "--dry-run")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path)}))
    said = client.refuse("push", adapter, "--space", "me/b", "--dry-run")
    assert "must load its base model from the Hub" in said
    assert "--base owner/name" in said
