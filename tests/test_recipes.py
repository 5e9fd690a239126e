"""`--config`: a section of a YAML file for each command, below what is typed; the paper's recipes are such files."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from drllm_adapter import DrLLMConfig
from drllm_adapter.cli import groups, main
from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate
from drllm_adapter.search import SearchConfig
from drllm_adapter.training import RefineConfig, TrainingConfig

search, train, refine = (import_module(f"drllm_adapter.cli.{name}") for name in ("search", "train", "refine"))
RECIPES = {Path(item.name).stem: yaml.safe_load(item.read_text()) for item in files("drllm_adapter.recipes").iterdir()
           if item.name.endswith(".yaml")}  # fmt: skip
# REFERENCE of the paper, section by section.
PAPER = {
    "search": {"simulations": 50, "exploration": 1.8, "length_penalty": 3.0, "random_child": 0.1, "max_skip": 2,
               "reward": "correct", "early_stop": True},
    "labels": "shortest",
    "train": {"epochs": 25, "learning_rate": 1e-3, "weight_decay": 0.01, "warmup_steps": 500, "batch_size": 16,
              "gamma": 2.0, "beta": 0.999},
}  # fmt: skip


def drllm(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["drllm", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence with which a command is refused."""

    def call(*arguments: Any) -> str:
        assert drllm(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"drllm: [^\n]+\.\n", error), error
        return error

    return call


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (search.Constants, SearchConfig),
        (train.Constants, TrainingConfig),
        (refine.Constants, RefineConfig),
        (groups.NewRouters, DrLLMConfig),
    ],
)
def test_options_have_the_defaults_of_what_they_set(options: Any, config: Any) -> None:
    # Where an option has none, other options say what it is.
    typed = {name: value for name, value in asdict(options()).items() if value is not None}
    assert typed == {name: getattr(config(), name) for name in typed}


@pytest.mark.parametrize(("recipe", "mode"), [("paper-arc", "cloze"), ("paper-dart", "free")])
def test_a_recipe_from_search_to_evaluation(
    recipe: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's constants arrive, other data and another mode are typed over them."""
    for name, count, seed in (("train", 40, 0), ("test", 8, 1)):
        asked = [{"prompt": item["question"], **({"choices": item["choices"], "answer": item["answer"]}
                  if mode == "cloze" else {"answer": item["choices"][item["answer"]]})}
                 for item in generate(count, seed)]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, asked)))
    monkeypatch.chdir(tmp_path)
    typed = ["--config", recipe, "--dtype", "float32"]
    data = ["--task", "jsonl", "--mode", mode, "--skip", 0, "--data"]
    assert drllm(monkeypatch, "search", BASE, *typed, *data, "train.jsonl", "--output", "paths", "--seed", 3) == 0
    assert drllm(monkeypatch, "train", "paths", *typed, "--output", "adapter") == 0
    assert drllm(monkeypatch, "eval", "adapter", *typed, *data, "test.jsonl", "--output", "evaluation") == 0
    search = json.loads(Path("paths/search.json").read_text())
    assert {name: search["search"][name] for name in PAPER["search"]} == PAPER["search"]
    assert (search["rule"], search["search"]["seed"]) == ("shortest", 3)
    training = json.loads(Path("adapter/training.json").read_text())
    assert {name: training["training"][name] for name in PAPER["train"]} == PAPER["train"]
    assert training["supervision"]["labels"]["rule"] == "shortest"
    assert training["metrics"]["epochs"] == 25
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (config["num_windows"], config["router_width"]) == (8, 128)
    assert json.loads(Path("evaluation/report.json").read_text())["mode"] == mode


def test_the_recipes_ask_what_the_paper_asked() -> None:
    arc, dart = RECIPES["paper-arc"], RECIPES["paper-dart"]
    assert RECIPES.keys() == {"paper-arc", "paper-dart"}
    assert (arc["search"]["mode"], arc["search"]["split"], arc["eval"]["split"]) == ("letter", "train", "test")
    assert arc["search"]["data"] == "allenai/ai2_arc:ARC-Easy,allenai/ai2_arc:ARC-Challenge"
    assert (dart["search"]["task"], dart["search"]["mode"]) == ("dart", "free")
    assert dart["eval"]["skip"] >= dart["search"]["limit"]  # never those that were searched


def test_bad_configs_are_refused(tmp_path: Path, refuse: Callable[..., str]) -> None:
    path = tmp_path / "mine.yaml"
    for text, said in {
        "search:\n  limitt: 3\n": "'limitt' is none",
        "search:\n  config: x\n": "'config' is none",
        "search:\n  layers: [1, 2]\n": "'layers' is none",
        "search:\n  limit: [1, 2]\n": r"'limit' is [1, 2]",
        "search:\n": "no options there",
        "train:\n  epochs: 3\n": "section 'search'",
        "serch:\n  limit: 3\n": "'serch'",
        "- 1\n": "a section for each command",
        "search: {limit: 3\n": "YAML",
    }.items():
        path.write_text(text)
        assert said in refuse("search", BASE, "--config", path, "--output", tmp_path / "x")
    assert "paper-arc, paper-dart" in refuse("search", BASE, "--config", "paper-cars", "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()
