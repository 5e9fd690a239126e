"""A file of prompts, and nothing else: searched, trained on, bounded and evaluated against the base's own output."""

import json
from pathlib import Path
from typing import Any

import pytest

from drllm_adapter import DrLLMError
from drllm_adapter.adapter.integrity import read_adapter_config
from drllm_adapter.demo import BASE
from drllm_adapter.evaluation import Effort
from drllm_adapter.scoring import references
from drllm_adapter.search import SearchConfig
from drllm_adapter.supervision import read_rows
from drllm_adapter.tasks import Question, load_questions
from drllm_adapter.training import TrainingConfig
from drllm_adapter.workflow import Labels, evaluate_adapter, search_paths, train_adapter

CONFIG = SearchConfig(method="random", simulations=10)


def prompts(folder: Path, count: int, skip: int = 0) -> list[Question]:
    """Plain lines of two kinds, by their file."""
    made = load_questions("khop", limit=count + skip, with_answers=False)[skip:]
    lines = [json.dumps({"prompt": question.question, "kind": f"hops {question.level}"}) for question in made]
    path = folder / f"prompts-{skip}.jsonl"
    path.write_text("\n".join(lines))
    return load_questions("jsonl", str(path), with_answers=False)


def search(output: Path, asked: list[Question], **options: Any) -> None:
    search_paths(
        str(BASE), asked, output, mode="self", config=CONFIG, labels=Labels("weighted", 0.5), max_new_tokens=2,
        dtype="float32", **options,
    )  # fmt: skip


def test_from_prompts_to_a_bounded_adapter(tmp_path: Path) -> None:
    search(tmp_path / "paths", prompts(tmp_path, 48))
    rows = read_rows(tmp_path / "paths")
    assert all(row.mode == "self" and row.reference and row.base_correct for row in rows)
    assert all(row.paths[0].agreement == 1 and row.paths[0].kl == 0 for row in rows)
    assert min(path.agreement for row in rows for path in row.paths if path.agreement is not None) < 1
    assert not (tmp_path / "paths" / references.REFERENCES).exists()
    assert "agreement with the base along the label" in (tmp_path / "paths" / "README.md").read_text()

    config = TrainingConfig(epochs=3, validation_share=0.25)
    train_adapter(tmp_path / "paths", tmp_path / "adapter", config=config, max_loss=20.0)
    held = json.loads((tmp_path / "adapter" / "training.json").read_text())["held_out"]
    assert (held["metric"], held["questions"]) == ("agreement", 12)
    assert held["loss"][2] <= 0.2
    saved = read_adapter_config(tmp_path / "adapter", "adapter")
    assert saved.depth_control == held["depth_control"]
    assert "12;" in (tmp_path / "adapter" / "README.md").read_text().split("held out")[1]

    report = evaluate_adapter(
        str(tmp_path / "adapter"), prompts(tmp_path, 32, skip=48), tmp_path / "adapter" / "evaluation", mode="self",
        max_new_tokens=2, dtype="float32", supervision=tmp_path / "paths",
        effort=Effort(greedy_questions=12, greedy_candidates=2, state_prompts=4),
    )  # fmt: skip
    assert (report.base.value, report.routed.name) == (1, "agreement")
    assert report.kl is not None
    assert report.baselines is not None
    assert report.baselines.metric == "agreement"
    assert len(report.tasks) > 2
    assert "| agreement |" in (tmp_path / "adapter" / "README.md").read_text()


def test_references_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(tmp_path, 40)
    search(tmp_path / "whole", asked)
    made: list[int] = []
    go_on = references._continue

    def counted(scorer: Any, batch: Any) -> Any:
        made.append(len(batch))
        if len(made) == 2 and sum(made) == 40:
            raise DrLLMError("the power failed")
        return go_on(scorer, batch)

    monkeypatch.setattr(references, "_continue", counted)
    with pytest.raises(DrLLMError, match="power"):
        search(tmp_path / "cut", asked)
    search(tmp_path / "cut", asked, resume=True)
    assert made == [32, 8, 8]
    assert read_rows(tmp_path / "cut") == read_rows(tmp_path / "whole")


def test_limits_need_answers_that_can_be_scored(tmp_path: Path) -> None:
    asked = [Question(f"q{n}", "jsonl", f"What is {n}?", None, "w") for n in range(4)]
    search_paths(str(BASE), asked, tmp_path / "free", mode="free", config=CONFIG, dtype="float32")
    with pytest.raises(DrLLMError, match="free answers; search with --mode contrast or --mode self"):
        train_adapter(tmp_path / "free", tmp_path / "adapter", max_loss=1.0)
    with pytest.raises(DrLLMError, match="max_loss must be a number from 0 to 100"):
        train_adapter(tmp_path / "free", tmp_path / "adapter", max_loss=-1.0)
    assert not (tmp_path / "adapter").exists()
