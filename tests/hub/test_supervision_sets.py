"""Supervision sets as datasets: pushed, loaded with `datasets`, mixed, filtered, saved again, and trained on."""

import json
from pathlib import Path
from typing import Any

import jobs
import pytest

from drllm_adapter.demo.khop import generate


@pytest.fixture(scope="session")
def paths(client: Any, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of the base, `paths` pushed to the Hub and `more`, searched with other constants."""
    folder = tmp_path_factory.mktemp("supervision")
    for name, seed, options in (
        ("paths", 0, ["--simulations", 20]),
        ("more", 1, ["--simulations", 12, "--labels", "shortest"]),
    ):
        questions = [{**item, "id": f"{name}-{place}"} for place, item in enumerate(generate(30, seed))]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(item) for item in questions))
        data = ["--task", "jsonl", "--data", folder / f"{name}.jsonl", "--mode", "cloze", "--dtype", "float32"]
        client.drllm("search", base, *data, *options, "--output", folder / name)
    client.drllm("push", folder / "paths", client.name("paths"), "--private")
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


TRAIN = ["--epochs", 2, "--dtype", "float32"]


def test_a_pushed_set_is_a_dataset(paths: Path, client: Any) -> None:
    columns, rows, features = client(jobs.describe_rows, client.name("paths"))
    assert list(columns) == ["train"]
    assert rows == 30
    assert features["paths"]["decisions"] == "int8"
    card = client(jobs.read, client.name("paths"), "README.md", repo_type="dataset")
    assert "dataset_info" in card
    assert "split: train" in card
    assert client(jobs.titles_of, client.name("paths"), repo_type="dataset")[0].startswith("Supervision set")


def test_a_set_trains_from_the_hub(paths: Path, client: Any, tmp_path: Path) -> None:
    client.drllm("train", paths / "paths", "--output", tmp_path / "local", *TRAIN)
    client.drllm("train", client.name("paths"), "--output", tmp_path / "hub", *TRAIN)
    client.drllm("train", "--supervision", f"{client.name('paths')}@main", "--output", tmp_path / "option", *TRAIN)
    assert weights(tmp_path / "local") == weights(tmp_path / "hub") == weights(tmp_path / "option")


def test_a_filtered_and_mixed_set_trains(paths: Path, client: Any, tmp_path: Path) -> None:
    """Whatever `datasets` makes of it: a Parquet file, a folder of them, a repository."""
    mixed = client.name("mixed")
    kept = client(jobs.mix, str(paths / "paths"), str(paths / "more"), str(tmp_path / "mixed.parquet"), mixed)
    assert 10 < kept < 60
    client.drllm("train", tmp_path / "mixed.parquet", "--output", tmp_path / "from-file", *TRAIN)
    client.drllm("train", mixed, "--output", tmp_path / "from-hub", *TRAIN)
    assert weights(tmp_path / "from-file") == weights(tmp_path / "from-hub")
    facts = json.loads((tmp_path / "from-hub" / "training.json").read_text())["supervision"]
    assert facts["questions"] <= kept
    assert facts["labels"]["rule"] is None  # each row's own
    assert facts["search"]["seed"] == 0
    assert "simulations" not in facts["search"]
    client.drllm("train", mixed, "--labels", "price", "--price", 0.4, "--output", tmp_path / "relabelled", *TRAIN)
    client.drllm("push", tmp_path / "from-hub", client.name("from-mixed"))  # with a card of what is known


def test_rows_of_another_base_are_refused(paths: Path, client: Any, tmp_path: Path) -> None:
    client(jobs.pretend_other_base, str(paths / "paths"), str(tmp_path / "other.parquet"), False)
    assert "was made with" in client.refuse("train", tmp_path / "other.parquet", "--output", tmp_path / "x", *TRAIN)
    client(jobs.pretend_other_base, str(paths / "paths"), str(tmp_path / "both.parquet"), True)
    assert "one base model" in client.refuse("train", tmp_path / "both.parquet", "--output", tmp_path / "x", *TRAIN)
    client(jobs.without_column, str(paths / "paths"), str(tmp_path / "less.parquet"), "paths")
    assert "paths is missing" in client.refuse("train", tmp_path / "less.parquet", "--output", tmp_path / "x", *TRAIN)
    assert not (tmp_path / "x").exists()


def test_an_unfinished_set_is_not_pushed(paths: Path, client: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(paths / "paths", tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "data")
    assert "--resume" in client.refuse("push", tmp_path / "unfinished", client.name("unfinished"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    assert "holds neither" in client.refuse("push", tmp_path / "thesis", client.name("thesis"))
