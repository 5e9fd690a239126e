"""Models larger than one device: half of the weights on the disk, against the same model in memory."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from drllm_adapter.adapter.base_identity import fingerprint
from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate
from drllm_adapter.models.loading import load_base, route_base
from drllm_adapter.scoring.shared_prefix import SharingScorer
from drllm_adapter.search import SearchConfig, run_search
from drllm_adapter.supervision import read_rows
from drllm_adapter.tasks import Question, build_prompts


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """A model in memory, the same with its last blocks and its head on the disk, and the tokenizer of both."""
    whole, tokenizer = load_base(str(BASE), dtype="float32", device="cpu")
    size = sum(parameter.numel() * 4 for parameter in whole.parameters())
    little = partial(AutoModelForCausalLM.from_pretrained, max_memory={"cpu": size * 6 // 10})
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", little)
    spread, _ = load_base(str(BASE), dtype="float32", device="auto")
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    return whole, spread, tokenizer


def test_a_spread_model_is_the_same_base(models: tuple[Any, Any, Any]) -> None:
    whole, spread, _ = models
    assert any(parameter.device.type == "meta" for parameter in spread.parameters())
    assert fingerprint(spread) == fingerprint(whole)
    with torch.no_grad():
        for parameter in whole.model.layers[7].parameters():
            parameter.mul_(1.5)
    assert fingerprint(spread) != fingerprint(whole)


def test_a_spread_model_is_searched_as_well(models: tuple[Any, Any, Any], tmp_path: Path) -> None:
    asked = [
        Question(str(place), "jsonl", item["question"], tuple(item["choices"]), item["answer"])
        for place, item in enumerate(generate(8, 0))
    ]
    rows = []
    for name, model in zip(("whole", "spread"), models[:2], strict=True):
        prompts = build_prompts(asked, "cloze", models[2])
        scorer = SharingScorer(route_base(model), models[2])
        run_search(asked, prompts, scorer, SearchConfig(simulations=10), tmp_path / name)
        rows.append(read_rows(tmp_path / name))
    assert rows[0] == rows[1]
