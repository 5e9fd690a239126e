"""What a loaded adapter may not do: take memory before its file was looked at, or run on another base unnoticed."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from unrolled import tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, last_decisions
from drllm_adapter.adapter.base_identity import comparable_fingerprint, fingerprint, is_fingerprint_of


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), DrLLMConfig())
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


LOADERS = (
    "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)",
    "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)",
    "AutoModelForCausalLM.from_pretrained(base).load_adapter(adapter)",
    "AutoModelForCausalLM.from_pretrained(base).load_adapter(adapter, is_trainable=True)",
    "AutoModelForCausalLM.from_pretrained(adapter)",
)


def claim_a_terabyte(adapter: Path, width: int) -> None:
    """Routers of that width, in a configuration that is consistent and a file that claims to hold them and more."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    header = {
        f"base_model.model.model.layers.{block}.drllm_router.{name}": {"dtype": "F32", "shape": shape}
        for block in range(5)
        for name, shape in (("down.weight", [width, 32]), ("up.weight", [3, width]), ("up.bias", [2**38]))
    }
    end = 0
    for entry in header.values():
        size = 4
        for number in entry["shape"]:
            size *= number
        entry["data_offsets"] = [end, end := end + size]
    text = json.dumps(header).encode()
    # A sparse file: as long as it says, and empty on the disk.
    with open(adapter / "adapter_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        os.truncate(file.name, 8 + len(text) + min(end, 2**42))
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "router_width": width}))


@pytest.mark.parametrize("width", [1 << 12, 1 << 20])
def test_a_terabyte_is_refused_before_memory_is_taken(width: int, saved: tuple[Path, Path]) -> None:
    base, adapter = saved
    claim_a_terabyte(adapter, width)
    code = (
        "import resource, sys, torch, drllm_adapter\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        "base, adapter = sys.argv[1:]\n"
        "AutoModelForCausalLM.from_pretrained(base)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    )
    for load in LOADERS:
        code += f"try:\n    {load}\nexcept drllm_adapter.DrLLMError as error:\n    print(error)\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    done = subprocess.run([sys.executable, "-c", code, str(base), str(adapter)], capture_output=True, text=True)
    *sentences, grown = done.stdout.splitlines()
    assert len(sentences) == len(LOADERS), done.stderr
    said = "adapter_model.safetensors must be a safetensors file"
    assert all(said in sentence or (width > 4096 and "router_width must be" in sentence) for sentence in sentences)
    assert int(grown) < 50_000, "kilobytes"


def test_a_base_of_other_dimensions_is_refused(saved: tuple[Path, Path]) -> None:
    _base, adapter = saved
    other = tiny_model("llama", intermediate_size=40)
    with pytest.raises(DrLLMError, match=r"configuration [0-9a-f]{16}\), but this base is"):
        PeftModel.from_pretrained(other, adapter)


def test_another_state_of_the_base_is_warned_of_once(saved: tuple[Path, Path]) -> None:
    base, adapter = saved

    def told(model: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            PeftModel.from_pretrained(model, adapter)
        return [str(item.message) for item in caught if "another state of its base" in str(item.message)]

    assert told(AutoModelForCausalLM.from_pretrained(base)) == []
    assert told(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)) == []
    tuned = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    (said,) = told(tuned)
    assert "base_weights" in said
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_revision": "1" * 40}))
    later = AutoModelForCausalLM.from_pretrained(base)
    later.config._commit_hash = "2" * 40
    (said,) = told(later)
    assert "base_revision" in said


def test_adapters_are_no_part_of_the_fingerprint(saved: tuple[Path, Path]) -> None:
    from peft import LoraConfig

    base, adapter = saved
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = fingerprint(model)
    assert fingerprint(PeftModel.from_pretrained(model, adapter)) == plain
    with_lora = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    assert fingerprint(with_lora) == plain
    assert comparable_fingerprint(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)) is None


def test_what_routers_do_not_read_is_no_other_state(saved: tuple[Path, Path]) -> None:
    """Compiled blocks, a vocabulary without its padding, another head: routers read the states between blocks."""
    base, _ = saved
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = fingerprint(model)
    for change in ("decoder", "blocks", "in place", "vocabulary", "longer vocabulary", "head"):
        other = AutoModelForCausalLM.from_pretrained(base)
        if change == "decoder":
            other.model = torch.compile(other.model, backend="eager")
        elif change == "blocks":
            other.model.layers[2] = torch.compile(other.model.layers[2], backend="eager")
        elif change == "in place":
            other.model.layers[2].compile(backend="eager")
        elif change == "head":
            assert not other.config.tie_word_embeddings
            torch.nn.init.ones_(other.lm_head.weight)
        else:
            other.resize_token_embeddings(40 if change == "vocabulary" else 80)
        assert fingerprint(other) == plain, change
    with torch.no_grad():
        model.model.embed_tokens.weight[:32] += 1
    assert fingerprint(model) != plain


def test_what_was_recorded_before_fingerprints_had_versions_counts(saved: tuple[Path, Path]) -> None:
    """A file that was written by version 0.1.0 names this base by a hash without a version."""
    base, _ = saved
    model = AutoModelForCausalLM.from_pretrained(base)
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        spread = flat[:: max(1, flat.numel() // 64)][:64]
        digest.update(spread.to(torch.bfloat16).float().numpy().tobytes())
    recorded = digest.hexdigest()[:16]
    assert is_fingerprint_of(recorded, model)
    assert is_fingerprint_of(fingerprint(model), model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    assert not is_fingerprint_of(recorded, model)


def test_settings_edited_by_hand_take_effect_where_they_can_be_right(saved: tuple[Path, Path]) -> None:
    base, adapter = saved
    path = adapter / "adapter_config.json"
    # Of an adapter that version 0.1.0 saved: a checksum of settings, and how it was trained.
    config = {**json.loads(path.read_text()), "settings_checksum": "0" * 64, "training": {"version": "0.1.0"}}
    path.write_text(json.dumps({**config, "depth_control": -1.0, "layer_budget": 3, "base_revision": "1" * 40}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads what transformers will rename
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    model(torch.ones(1, 4, dtype=torch.long))
    assert last_decisions(model).tolist() == [[0] * 5]
    assert model.peft_config["default"].layer_budget == 3
    model.save_pretrained(adapter)
    kept = json.loads(path.read_text())
    assert (kept["depth_control"], kept["base_revision"]) == (-1.0, "1" * 40)
    assert not {"settings_checksum", "training"} & kept.keys()
    for wrong in ({"layer_budget": -1}, {"depth_control": 2}, {"router_width": 64}, {"layers_to_transform": [1]}):
        path.write_text(json.dumps({**config, **wrong}))
        with pytest.raises(DrLLMError):
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
