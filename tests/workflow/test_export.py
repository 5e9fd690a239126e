"""`drllm export`: where a path may come from, what the folder and its card say; a folder is whole or absent."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from drllm_adapter import DrLLMConfig, DrLLMError, last_decisions
from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate
from drllm_adapter.models import unroll
from drllm_adapter.workflow.export import export_path
from drllm_adapter.workflow.generate import generate_text

PROMPTS = [str(item["question"]) for item in generate(6, 0)]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Routers that choose different paths for different prompts."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), DrLLMConfig())
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "drllm_router" in name:
            torch.nn.init.normal_(parameter, std=5.0 if "up" in name else 0.3)
    folder = tmp_path_factory.mktemp("made") / "routers"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def paths(adapter: str) -> list[tuple[int, ...]]:
    """What the library itself decides for each prompt."""
    from drllm_adapter.models.loading import load_routed

    model, tokenizer = load_routed(adapter, dtype="float32")
    found = []
    for prompt in PROMPTS:
        generate_text(model, tokenizer, prompt, max_new_tokens=1)
        found.append(tuple(last_decisions(model)[0].tolist()))
    assert len(set(found)) > 1
    return found


def test_a_path_by_hand(tmp_path: Path) -> None:
    export_path(str(BASE), tmp_path / "a", skip=[3, 4], repeat=[6])
    export_path(str(BASE), tmp_path / "b", path="0-2 5 6 6 7")
    export_path(str(BASE), tmp_path / "c", path="0-7")
    with pytest.raises(DrLLMError, match="already holds a checkpoint"):
        export_path(str(BASE), tmp_path / "c", skip=[3, 4], repeat=[6])
    with pytest.raises(DrLLMError, match="block"):
        export_path(str(BASE), tmp_path / "c", skip=[9], overwrite=True)
    assert json.loads((tmp_path / "c" / "unrolled.json").read_text())["decisions"] == [1] * 8
    export_path(str(BASE), tmp_path / "c", skip=[3, 4], repeat=[6], overwrite=True)
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    card = (tmp_path / "a" / "README.md").read_text()
    assert "3, 4 left out; 6 run twice" in card
    assert "Nothing has been measured yet" in card
    assert str(BASE) not in card
    assert AutoTokenizer.from_pretrained(tmp_path / "a")(PROMPTS[0])["input_ids"]


def test_the_path_of_a_prompt_and_the_most_frequent_one(
    adapter: str, paths: list[tuple[int, ...]], tmp_path: Path
) -> None:
    assert export_path(adapter, tmp_path / "one", prompts=PROMPTS[:1]).decisions == paths[0]
    odd = next(place for place in range(len(paths)) if paths[place] != paths[0])
    chosen = export_path(adapter, tmp_path / "most", prompts=[PROMPTS[0], PROMPTS[odd], PROMPTS[odd]])
    assert chosen.decisions == paths[odd]
    assert "for 2 of 3 prompts" in (tmp_path / "most" / "README.md").read_text()


def report(**changes: Any) -> dict[str, Any]:
    source = {"name": "questions.jsonl", "config": None, "split": None, "hub": False}
    return {"base": str(BASE), "sources": [source], "mode": "cloze", "dtype": "float32", **changes}


STATIC = [
    {"name": "base", "decisions": [1] * 8, "value": 0.9, "interval": [0.8, 1.0], "passes": 8},
    {"name": "ShortGPT, 6 passes", "decisions": [1, 1, 0, 0, 1, 1, 1, 1], "value": 0.7, "interval": [0.6, 0.8],
     "passes": 6},
    {"name": "static, greedy, 7 passes", "decisions": [1, 1, 1, 0, 1, 1, 1, 1], "value": 0.7,
     "interval": [0.6, 0.8], "passes": 7},
]  # fmt: skip


def test_the_best_static_path_of_an_evaluation(tmp_path: Path) -> None:
    """Not the base's; of equally good ones the shorter."""
    told = report(baselines={"questions": 40, "static": STATIC})
    (tmp_path / "report.json").write_text(json.dumps(told | {"base": {"value": 0.9}}))
    assert export_path(str(BASE), tmp_path / "out", report=tmp_path).decisions == (1, 1, 0, 0, 1, 1, 1, 1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "On 40 questions (questions.jsonl; cloze, float32)" in card
    assert "| ShortGPT, 6 passes | 6.00 | 70.0 [60.0, 80.0] |" in card
    assert "| base | 8.00 | 90.0 [80.0, 100.0] |" in card


def test_the_best_static_path_of_a_probe(tmp_path: Path) -> None:
    told = report(
        static_path=[1, 1, 1, 1, 0, 1, 1, 1],
        num_blocks=8,
        curves={
            "the same for all prompts": [[1.0, 8.0], [0.8, 7.0], [0.6, 6.0]],
            "by the kind of prompt": [[0.9, 7.0]],
        },
        questions={"a": 30, "b": 10},
    )
    (tmp_path / "report.json").write_text(json.dumps(told))
    assert export_path(str(BASE), tmp_path / "out", report=tmp_path / "report.json").decisions[4] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| the same for all prompts | 7.00 | 80.0 |" in card
    assert "by the kind" not in card
    # A report of another model, or whose best path is the base's.
    (tmp_path / "report.json").write_text(json.dumps(told | {"base": "owner/other"}))
    with pytest.raises(DrLLMError, match="measured with 'owner/other'"):
        export_path(str(BASE), tmp_path / "no", report=tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(told | {"static_path": [1] * 8}))
    with pytest.raises(DrLLMError, match="the base model itself"):
        export_path(str(BASE), tmp_path / "no", report=tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(told | {"static_path": [1] * 7}))
    with pytest.raises(DrLLMError, match="8 blocks"):
        export_path(str(BASE), tmp_path / "no", report=tmp_path)


def test_a_path_comes_from_one_place(adapter: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DrLLMError, match="none of them was given"):
        export_path(str(BASE), out)
    with pytest.raises(DrLLMError, match="2 of them were given"):
        export_path(str(BASE), out, path="0-7", skip=[1])
    with pytest.raises(DrLLMError, match="is a base model; name an adapter"):
        export_path(str(BASE), out, prompts=["a"])
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DrLLMError, match="has no static path"):
        export_path(adapter, out, report=tmp_path)
    assert not out.exists()


def test_a_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(DrLLMError, match="holds something else"):
        export_path(str(BASE), tmp_path / "full", skip=[1])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unroll, "save_file", full)
    with pytest.raises(DrLLMError, match="free some space"):
        export_path(str(BASE), tmp_path / "out", skip=[1])
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
