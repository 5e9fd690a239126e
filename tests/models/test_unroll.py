"""A path as an ordinary checkpoint: the weights and the answers of the unrolled model, or refused by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from unrolled import tiny_model, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions
from drllm_adapter.demo import BASE
from drllm_adapter.models.unroll import look_at_base, write_unrolled

IDS = torch.randint(3, 70, (2, 12), generator=torch.Generator().manual_seed(0))
DECISIONS = st.lists(st.integers(0, 2), min_size=8, max_size=8).filter(any)


@pytest.fixture(scope="module")
def routed() -> Any:
    return get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), DrLLMConfig()).eval()


def saved(folder: Path, model: Any) -> str:
    """A base model in a folder, with a tokenizer."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
@settings(max_examples=12)
@given(decisions=DECISIONS, max_shard=st.sampled_from([20_000, 300_000, "5GB"]))
def test_bit_for_bit_as_the_forced_path(
    routed: Any, tmp_path_factory: pytest.TempPathFactory, decisions: list[int], max_shard: int | str
) -> None:
    folder = tmp_path_factory.mktemp("path")
    write_unrolled(look_at_base(str(BASE)), tuple(decisions), folder, max_shard=max_shard)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.config.num_hidden_layers == sum(decisions)
    with force_decisions(routed, decisions):
        assert torch.equal(routed(IDS).logits, model(IDS).logits)
        tokens = [part.generate(IDS, max_new_tokens=6, do_sample=False) for part in (routed, model)]
    assert torch.equal(*tokens)
    if isinstance(max_shard, int):
        files = list(folder.glob("*.safetensors"))
        assert len(files) > 1
        # No file is larger than asked, unless by its header or by one tensor alone.
        for file in files:
            held = load_file(file)
            assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= max_shard


def test_it_loads_where_this_package_is_not(tmp_path: Path, routed: Any) -> None:
    decisions = [1, 0, 2, 1, 1, 0, 2, 1]
    write_unrolled(look_at_base(str(BASE)), tuple(decisions), tmp_path)
    code = (
        "import sys; sys.modules['drllm_adapter'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "import json, sys\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('a b c', return_tensors='pt')\n"
        "print(json.dumps(model.generate(**ids, max_new_tokens=5, do_sample=False).tolist()))"
    )
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    ids = AutoTokenizer.from_pretrained(BASE)("a b c", return_tensors="pt")
    with force_decisions(routed, decisions):
        assert json.loads(done.stdout) == routed.generate(**ids, max_new_tokens=5, do_sample=False).tolist()


@pytest.mark.parametrize("model_type", ["qwen2", "mistral", "gpt2"])
def test_what_the_configuration_says_of_each_block_goes_with_it(model_type: str, tmp_path: Path) -> None:
    """Qwen2 mixes full and sliding attention; the weights are those of the unrolled model, under the same names."""
    model, decisions = tiny_model(model_type), [0, 1, 2, 2, 0]
    (tmp_path / "path").mkdir()
    write_unrolled(look_at_base(saved(tmp_path / "base", model)), tuple(decisions), tmp_path / "path")
    found, expected = AutoModelForCausalLM.from_pretrained(tmp_path / "path").eval(), unrolled(model, decisions)
    assert getattr(found.config, "layer_types", None) == getattr(expected.config, "layer_types", None)
    weights = expected.state_dict()
    assert found.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in found.state_dict().items())
    with torch.no_grad():
        assert torch.equal(found(IDS[:, :10] % 60).logits, expected(IDS[:, :10] % 60).logits)


def test_what_a_block_works_out_from_its_place_is_refused_by_name(tmp_path: Path) -> None:
    base = look_at_base(saved(tmp_path / "base", tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)))
    (tmp_path / "path").mkdir()
    with pytest.raises(DrLLMError, match=r"gpt2 configuration .* block 2 would be another \(attn.scaling"):
        write_unrolled(base, (1, 0, 1, 1, 1), tmp_path / "path")
    # Where every block keeps its place there is nothing to refuse.
    write_unrolled(base, (1, 1, 1, 0, 0), tmp_path / "path")


def test_a_base_that_cannot_be_unrolled_is_refused(tmp_path: Path) -> None:
    base = Path(saved(tmp_path / "base", tiny_model("llama")))
    (tmp_path / "path").mkdir()
    with pytest.raises(DrLLMError, match="at least one block"):
        write_unrolled(look_at_base(str(base)), (0,) * 5, tmp_path / "path")
    config = json.loads((base / "config.json").read_text())
    named = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["model.layers.3.mlp"]}
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": named}))
    with pytest.raises(DrLLMError, match="names single ones"):
        write_unrolled(look_at_base(str(base)), (1, 1, 1, 1, 0), tmp_path / "path")
    (base / "config.json").write_text(json.dumps(config))
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:3])
    with pytest.raises(DrLLMError, match="it is damaged"):
        write_unrolled(look_at_base(str(base)), (1, 1, 1, 1, 0), tmp_path / "path")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(DrLLMError, match="must have its weights as safetensors"):
        write_unrolled(look_at_base(str(base)), (1, 1, 1, 1, 0), tmp_path / "path")
    shutil.rmtree(base)
    with pytest.raises(DrLLMError, match="reading its configuration failed"):
        look_at_base(str(base))
