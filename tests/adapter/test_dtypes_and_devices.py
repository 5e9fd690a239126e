"""Any dtype, any place and any quantization of the base: the routers stay float32 and rows equal the unrolled model."""

import copy
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, add_hook_to_module
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from test_peft_method import IDS, logits
from test_saving_and_loading import teach
from torch import nn
from transformers import AutoModelForCausalLM
from unrolled import SIZES, VOCABULARY, tiny_model, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions
from drllm_adapter.adapter.layer import routed_layers

GENERATE = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 5, "do_sample": False}


def routers(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if "drllm_router" in name}


def routed(base: Any) -> Any:
    model = get_peft_model(base, DrLLMConfig()).eval()
    teach(model)
    return model


# Dtypes


CASTS: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to": lambda model: model.to(torch.float16),
    "to with a device": lambda model: model.to("cpu", torch.bfloat16),
    "the base": lambda model: model.get_base_model().to(torch.bfloat16),
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("cast", CASTS)
def test_casting_leaves_the_routers(cast: str) -> None:
    model = routed(tiny_model("llama"))
    before = {name: weight.clone() for name, weight in routers(model).items()}
    CASTS[cast](model)
    assert not any(weight.dtype == torch.float32 for name, weight in model.named_parameters() if name not in before)
    for name, weight in routers(model).items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loaded_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    routed(AutoModelForCausalLM.from_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    for model in (
        get_peft_model(copy.deepcopy(base), DrLLMConfig(), autocast_adapter_dtype=False),
        PeftModel.from_pretrained(base, tmp_path / "adapter"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=dtype),
    ):
        kinds = {("drllm" in name, weight.dtype) for name, weight in model.named_parameters()}
        assert kinds == {(True, torch.float32), (False, dtype)}
        assert logits(model).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", SIZES)
@torch.no_grad()
def test_half_precision_equals_the_unrolled_model(model_type: str, dtype: torch.dtype) -> None:
    base = tiny_model(model_type).to(dtype)
    model = routed(copy.deepcopy(base))
    found = logits(model)
    decisions = last_decisions(model).tolist()
    tokens = model.generate(IDS, **GENERATE)
    for row, path in enumerate(decisions):
        alone = {**GENERATE, "attention_mask": torch.ones_like(IDS[:1])}
        truth = unrolled(base, path)
        torch.testing.assert_close(found[row], truth(IDS[row : row + 1]).logits[0])
        assert torch.equal(tokens[row], truth.generate(IDS[row : row + 1], **alone)[0])


# Places


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A folder with a base and an adapter, and what the adapter computes."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = routed(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, logits(model), model.generate(IDS, **GENERATE)


def base_over_cpu_and_disk(folder: Path) -> Any:
    """Blocks 2 to 4 on the disk, put there by transformers when it loads the base."""
    places = {f"model.layers.{block}": "cpu" if block < 2 else "disk" for block in range(5)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    base = AutoModelForCausalLM.from_pretrained(
        folder / "base", device_map={**places, **rest}, offload_folder=folder / "offloaded"
    )
    assert {weight.device.type for weight in base.parameters()} == {"cpu", "meta"}
    return base


def split_over_cpu_and_disk(folder: Path) -> Any:
    base = base_over_cpu_and_disk(folder)
    model = get_peft_model(base, PeftConfig.from_pretrained(folder / "adapter"))
    set_peft_model_state_dict(model, load_peft_weights(str(folder / "adapter"), device="cpu"))
    return model


def offloaded_to_the_cpu_before(folder: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    cpu_offload(base, execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in base.parameters()} == {"meta"}
    return PeftModel.from_pretrained(base, folder / "adapter")


def offloaded_to_the_cpu_after(folder: Path) -> Any:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter")
    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def offloaded_to_the_disk_after(folder: Path) -> Any:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter")
    disk_offload(model, str(folder / "offloaded"), execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    return model


def with_a_hook_on_every_block(folder: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    for block in base.model.layers:
        add_hook_to_module(block, AlignDevicesHook(execution_device=torch.device("cpu"), io_same_device=True))
    return PeftModel.from_pretrained(base, folder / "adapter")


@pytest.mark.parametrize(
    "place",
    [
        split_over_cpu_and_disk,
        offloaded_to_the_cpu_before,
        offloaded_to_the_cpu_after,
        offloaded_to_the_disk_after,
        with_a_hook_on_every_block,
    ],
)
def test_offloaded_and_split_bases(place: Callable[[Path], Any], saved: Any) -> None:
    folder, expected, tokens = saved
    model = place(folder).eval()
    assert torch.equal(logits(model), expected)
    assert torch.equal(model.generate(IDS, **GENERATE), tokens)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(folder / "base")))


def test_loading_onto_a_base_on_the_disk_is_refused(saved: Any) -> None:
    folder, *_ = saved
    with pytest.raises(DrLLMError, match="get_peft_model"):
        PeftModel.from_pretrained(base_over_cpu_and_disk(folder), folder / "adapter")
    with pytest.raises(DrLLMError, match="was not among them"):  # transformers leaves out the routers of those blocks
        base_over_cpu_and_disk(folder).load_adapter(str(folder / "adapter"))


def test_on_the_meta_device() -> None:
    model = get_peft_model(tiny_model("llama"), DrLLMConfig(), low_cpu_mem_usage=True)
    assert {weight.device.type for weight in routers(model).values()} == {"meta"}
    assert {weight.device.type for weight in routed(tiny_model("llama")).to("meta").parameters()} == {"meta"}


def test_a_router_lies_where_its_block_computes() -> None:
    """Not where the block's weights are kept meanwhile: accelerate's hooks say so."""
    base = tiny_model("llama")
    elsewhere = AlignDevicesHook(execution_device=torch.device("meta"), offload=True, weights_map={})
    base.model.layers[1]._hf_hook = elsewhere
    base.model.layers[2].mlp._hf_hook = SequentialHook(ModelHook(), elsewhere)
    model = get_peft_model(base, DrLLMConfig())
    places = [layer.drllm_router["default"].up.weight.device.type for layer in routed_layers(model)]
    assert places == ["cpu", "meta", "meta", "cpu", "cpu"]


def test_blocks_on_another_device_than_the_one_before() -> None:
    """The meta device stands in for a second one: it computes nothing, but refuses tensors of two devices all the same.

    Nothing comes back from it, so the routers are those of the blocks up to the first one there.
    """
    model = get_peft_model(tiny_model("llama"), DrLLMConfig(layers_to_transform=[0, 1, 2]))
    base = model.get_base_model()
    for module in (*(layer.base_layer for layer in routed_layers(model)[2:]), base.model.norm, base.lm_head):
        add_hook_to_module(module, AlignDevicesHook(torch.device("meta"), place_submodules=True))
    paths = [[1, 0, 2, 1, 0], [1, 1, 0, 2, 0], [1, 2, 1, 0, 0], [1, 1, 1, 1, 2]]
    with force_decisions(model, paths), torch.no_grad():
        assert model(IDS).logits.shape == (*IDS.shape, VOCABULARY)
    assert model.train()(IDS).logits.shape == (*IDS.shape, VOCABULARY)  # every outcome of blocks on both devices


# Quantized bases


def torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def torchao_int8_activations() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8DynamicActivationInt8WeightConfig())


def bitsandbytes_8bit() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def bitsandbytes_8bit_with_outliers() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def bitsandbytes_4bit() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


def bitsandbytes_nf4() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def quanto_int8() -> Any:
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


NEEDS = {
    torchao_int8: "torchao",
    torchao_int8_activations: "torchao",
    bitsandbytes_8bit: "bitsandbytes",
    bitsandbytes_8bit_with_outliers: "bitsandbytes",
    bitsandbytes_4bit: "bitsandbytes",
    bitsandbytes_nf4: "bitsandbytes",
    quanto_int8: "optimum",
}


@contextmanager
def unrolled_in_place(model: Any, decisions: list[int]) -> Iterator[Any]:
    """The unrolled model without copies, which not every quantized weight survives."""
    blocks, config = model.model.layers, model.config
    path = [block for block, times in enumerate(decisions) for _ in range(times)]
    positions = []
    for position, block in enumerate(path):
        twin, attention = copy.copy(blocks[block]), copy.copy(blocks[block].self_attn)
        attention.layer_idx = position
        twin._modules = {**twin._modules, "self_attn": attention}
        positions.append(twin)
    depth, config.num_hidden_layers = config.num_hidden_layers, len(path)
    model.model.layers = nn.ModuleList(positions)
    try:
        yield model
    finally:
        model.model.layers, config.num_hidden_layers = blocks, depth


@pytest.mark.parametrize("quantization", NEEDS)
@pytest.mark.filterwarnings("ignore")
def test_quantized_bases(quantization: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if importlib.util.find_spec(NEEDS[quantization]) is None:
        pytest.skip(f"{NEEDS[quantization]} is not installed")
    caplog.set_level(logging.ERROR)
    plain = tiny_model("llama", hidden_size=64, intermediate_size=128, head_dim=16)
    plain.save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization(), device_map="cpu").eval()
    quantized = logits(base)
    assert (quantized - logits(plain)).abs().max() > 0.01

    model = get_peft_model(base, DrLLMConfig()).eval()
    assert torch.equal(logits(model), quantized)
    teach(model)
    assert {weight.dtype for weight in routers(model).values()} == {torch.float32}
    # bitsandbytes looks for outliers in the whole batch, so rows depend on their batch mates in the base model too.
    batches = IDS.split(1) if quantization is bitsandbytes_8bit_with_outliers else [IDS]
    found, decisions, tokens = [], [], []
    for ids in batches:
        found += model(ids).logits.detach()
        decisions += last_decisions(model).tolist()
        tokens += model.generate(ids, **{**GENERATE, "attention_mask": torch.ones_like(ids)})
    assert len({tuple(path) for path in decisions}) > 1

    base = model.unload()
    assert torch.equal(logits(base), quantized)
    alone = {**GENERATE, "attention_mask": torch.ones_like(IDS[:1])}
    for row, path in enumerate(decisions):
        with unrolled_in_place(base, path) as truth:
            torch.testing.assert_close(found[row], truth(IDS[row : row + 1]).logits[0])
            assert torch.equal(tokens[row], truth.generate(IDS[row : row + 1], **alone)[0])

    model = get_peft_model(prepare_model_for_kbit_training(base), DrLLMConfig()).train()
    teach(model)
    model(IDS, labels=IDS).loss.backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in routers(model).values())
    assert all(weight.grad is None for name, weight in model.named_parameters() if name not in routers(model))
    model.save_pretrained(tmp_path / "adapter")
    assert len(get_peft_model_state_dict(model)) == len(load_peft_weights(str(tmp_path / "adapter"), device="cpu"))


# GPUs


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def on_gpu(model_type: str, dtype: torch.dtype, attention: str = "sdpa") -> tuple[Any, Any]:
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(attention)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    sizes = {"hidden_size": 64, "head_dim": 16} if model_type != "gpt2" else {"hidden_size": 64}
    base = tiny_model(model_type, attn_implementation=attention, **sizes).to("cuda", dtype)
    return base, routed(copy.deepcopy(base))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
@torch.no_grad()
def test_parity_on_a_gpu(model_type: str, dtype: torch.dtype, attention: str) -> None:
    if attention.startswith("flash") and dtype == torch.float32:
        pytest.skip("flash-attention needs half precision")
    base, model = on_gpu(model_type, dtype, attention)
    assert {weight.dtype for weight in routers(model).values()} == {torch.float32}
    assert {weight.device.type for weight in model.parameters()} == {"cuda"}
    ids = IDS.cuda()
    found = model(ids).logits
    decisions = last_decisions(model).tolist()
    # Kernels differ with the batch size: the base says by how much.
    tolerance = max((base(ids).logits[row] - base(ids[row : row + 1]).logits[0]).abs().max().item() for row in range(4))
    for row, path in enumerate(decisions):
        truth = unrolled(base, path)
        alone = truth(ids[row : row + 1]).logits[0]
        torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=max(1e-4, 4 * tolerance))
        with force_decisions(model, path):
            assert torch.equal(model(ids[row : row + 1]).logits[0], alone)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded"])
@torch.no_grad()
def test_generation_on_a_gpu(cache: str) -> None:
    base, model = on_gpu("llama", torch.float32)
    ids = torch.randint(1, VOCABULARY, (1, 12)).cuda()
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    tokens = model.generate(ids, cache_implementation=cache, **arguments)
    truth = unrolled(base, last_decisions(model)[0].tolist())
    assert torch.equal(tokens, truth.generate(ids, cache_implementation=cache, **arguments))


@pytest.mark.gpu
@needs_gpu
@torch.no_grad()
def test_compiled_on_a_gpu() -> None:
    base, model = on_gpu("llama", torch.float32)
    path = [1, 0, 2, 1, 1]
    with force_decisions(model, path):
        found = torch.compile(model)(IDS.cuda()).logits
    torch.testing.assert_close(found, unrolled(base, path)(IDS.cuda()).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
@torch.no_grad()
def test_blocks_on_a_gpu_and_the_cpu(saved: Any) -> None:
    folder, expected, _ = saved
    places = {f"model.layers.{block}": 0 if block < 3 else "cpu" for block in range(5)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), 0)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", device_map={**places, **rest})
    model = PeftModel.from_pretrained(base, folder / "adapter", device_map={**places, **rest})
    torch.testing.assert_close(logits(model).cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@torch.no_grad()
def test_blocks_on_two_gpus(saved: Any) -> None:
    folder, expected, _ = saved
    places = {f"model.layers.{block}": block % 2 for block in range(5)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), 0)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", device_map={**places, **rest})
    model = PeftModel.from_pretrained(base, folder / "adapter")
    for block, layer in enumerate(base.model.layers):
        assert {weight.device.index for weight in layer.drllm_router.parameters()} == {block % 2}
    torch.testing.assert_close(logits(model).cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bench_on_a_gpu(dtype: str, tmp_path: Path) -> None:
    command = f"bench routing --device cuda --dtype {dtype} --repetitions 3 --decode-tokens 8 --output bench.json"
    run = subprocess.run([sys.executable, "-m", "drllm_adapter", *command.split()], cwd=tmp_path)
    report = json.loads((tmp_path / "bench.json").read_text())
    assert all(result["ratio"] > 0 for result in report["results"])
    assert (run.returncode == 0) == all(result["met"] for result in report["results"])
