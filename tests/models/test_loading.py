"""Which dtype a model is loaded in and how many threads it gets, on a CPU whose speed is made up."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MambaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from unrolled import tiny_model

from drllm_adapter import DrLLMError
from drllm_adapter.demo import BASE
from drllm_adapter.models import speed
from drllm_adapter.models.loading import load_base, route_base
from drllm_adapter.models.speed import use_the_faster


class Clock:
    """In place of the `time` module: a block takes as long as the test says for its dtype and the threads."""

    def __init__(self, seconds: dict[tuple[torch.dtype, int], float]) -> None:
        self.now, self.seconds = 0.0, seconds
        self.run: list[tuple[torch.dtype, int]] = []

    def perf_counter(self) -> float:
        return self.now

    def forward(self, block: Any, *arguments: Any, **options: Any) -> Any:
        option = (block.self_attn.q_proj.weight.dtype, torch.get_num_threads())
        self.run.append(option)
        self.now += self.seconds[option]
        return forward(block, *arguments, **options)


forward = LlamaDecoderLayer.forward


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock({})
    monkeypatch.setattr(speed, "time", made)
    monkeypatch.setattr(LlamaDecoderLayer, "forward", lambda *given, **named: made.forward(*given, **named))
    return made


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
    own: torch.dtype, in_own: float, in_float32: float, tmp_path: Path, clock: Clock
) -> None:
    weights = saved(tmp_path, own)
    clock.seconds = {(own, 1): in_own, (torch.float32, 1): in_float32}
    model, _ = load_base(str(tmp_path), device="cpu")
    assert model.dtype == (own if in_own < in_float32 else torch.float32)
    assert set(clock.run) == set(clock.seconds)
    assert sum(clock.seconds[option] for option in clock.run) <= 4 * sum(clock.seconds.values())  # of one block
    for name, value in model.state_dict().items():
        assert torch.equal(value.float(), weights[name].float())
    plain = LlamaForCausalLM.from_pretrained(tmp_path, dtype=model.dtype)
    assert [buffer.dtype for buffer in model.buffers()] == [torch.float32] * 2  # frequencies of the rotary embedding
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), plain.buffers(), strict=True))
    routed = route_base(model).train()  # what was measured with can be trained with
    routed(torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()


@pytest.mark.parametrize(
    ("with_one", "with_eight", "chosen"), [(1.0, 0.5, 8), (1.0, 0.9, 1), (1.0, 3.0, 1), (0.01, 0.001, 8)]
)
def test_more_threads_are_used_where_they_are_clearly_faster(
    with_one: float, with_eight: float, chosen: int, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, torch.float32)
    clock.seconds = {(torch.float32, 1): with_one, (torch.float32, 8): with_eight}
    torch.set_num_threads(8)
    load_base(str(tmp_path), device="cpu")
    assert torch.get_num_threads() == 8  # OMP_NUM_THREADS says how many, whatever is faster
    assert not clock.run
    monkeypatch.delenv("OMP_NUM_THREADS")
    load_base(str(tmp_path), device="cpu")
    assert torch.get_num_threads() == chosen
    assert clock.now <= max(0.8 + with_one + with_eight, 2 * (with_one + with_eight))


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "mamba"])
def test_blocks_of_every_kind_can_be_timed(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    if architecture == "mamba":
        shape = MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4)
        model = AutoModelForCausalLM.from_config(shape).to(torch.bfloat16).eval()
    else:
        model = tiny_model(architecture, 2).to(torch.bfloat16)
    ids = torch.arange(6)[None]
    before = model(ids).logits
    use_the_faster(model, any_dtype=True)
    assert torch.get_num_threads() in (1, 2)
    assert torch.allclose(model(ids).logits.float(), before.float(), atol=0.1)


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
