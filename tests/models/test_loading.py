"""Which dtype a model is loaded in, on a CPU whose speed is made up."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from unrolled import tiny_model

from drllm_adapter import DrLLMError
from drllm_adapter.demo import BASE
from drllm_adapter.models import loading
from drllm_adapter.models.loading import load_base, route_base


class Clock:
    """In place of the `time` module: a forward pass takes as long as the test says for its dtype."""

    def __init__(self, seconds: dict[torch.dtype, float]) -> None:
        self.now, self.seconds = 0.0, seconds
        self.run: list[torch.dtype] = []

    def perf_counter(self) -> float:
        return self.now

    def forward(self, model: Any, *arguments: Any, **options: Any) -> Any:
        self.run.append(model.dtype)
        self.now += self.seconds[model.dtype]
        return forward(model, *arguments, **options)


forward = LlamaForCausalLM.forward


def saved(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A checkpoint in a dtype, with the demo's tokenizer; gives its weights."""
    model = tiny_model("llama", 2).to(dtype)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder)
    return dict(model.state_dict())


@pytest.mark.parametrize("own", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("in_own", "in_float32"), [(1.0, 2.0), (2.0, 1.0)])
def test_auto_is_the_faster_dtype_on_a_cpu(
    own: torch.dtype, in_own: float, in_float32: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = saved(tmp_path, own)
    clock = Clock({own: in_own, torch.float32: in_float32})
    monkeypatch.setattr(loading, "time", clock)
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *arguments, **options: clock.forward(*arguments, **options))
    model, _ = load_base(str(tmp_path), device="cpu")
    assert model.dtype == (own if in_own < in_float32 else torch.float32)
    assert set(clock.run) == {own, torch.float32}
    for name, value in model.state_dict().items():
        assert torch.equal(value.float(), weights[name].float())
    plain = LlamaForCausalLM.from_pretrained(tmp_path, dtype=model.dtype)
    assert [buffer.dtype for buffer in model.buffers()] == [torch.float32] * 2  # frequencies of the rotary embedding
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), plain.buffers(), strict=True))
    routed = route_base(model).train()  # what was measured with can be trained with
    routed(torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()


def test_a_base_with_weights_missing_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, torch.float32)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers.1.mlp." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DrLLMError, match=r"3 are missing, the first being model\.layers\.1\.mlp\.down_proj"):
        load_base(str(tmp_path))


@pytest.mark.parametrize(
    ("own", "asked", "given"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
    ],
)
def test_nothing_is_measured_where_the_dtype_is_settled(
    own: torch.dtype, asked: str, given: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, own)
    clock = Clock(dict.fromkeys((torch.float32, torch.bfloat16), 1.0))
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *arguments, **options: clock.forward(*arguments, **options))
    model, _ = load_base(str(tmp_path), dtype=asked, device="cpu")
    assert model.dtype == given
    assert clock.run == []
