"""What is saved is what every library loads: same decisions, same logits; anything else is refused in one sentence."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, last_decisions

IDS = torch.randint(1, VOCABULARY, (6, 17), generator=torch.Generator().manual_seed(1))
WEIGHTS = "adapter_model.safetensors"


def teach(model: Any, seed: int = 0) -> None:
    """Routers that choose different paths for different prompts."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "drllm_router" in name:
            torch.nn.init.normal_(parameter, std=1.0 if "up" in name else 0.3)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path, torch.Tensor, torch.Tensor]:
    """A base folder, an adapter folder that names it, and the logits and decisions of the adapter before saving."""
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), DrLLMConfig()).eval()
    teach(model)
    with torch.no_grad():
        logits = model(IDS).logits
    decisions = last_decisions(model)
    assert len({tuple(row) for row in decisions.tolist()}) > 1
    assert set(decisions.flatten().tolist()) == {0, 1, 2}
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", logits, decisions


def load_with_peft(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def load_with_every_option(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.warns(UserWarning, match="Ephemeral GPU offloading is not supported"):
        return PeftModel.from_pretrained(
            model,
            adapter,
            low_cpu_mem_usage=True,
            torch_device="cpu",
            autocast_adapter_dtype=False,
            ephemeral_gpu_offload=True,
        )


def load_to_train(base: Path, adapter: Path) -> Any:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)
    assert sum(weight.requires_grad for weight in model.parameters()) == 20
    return model


def load_into_a_state_dict(base: Path, adapter: Path) -> Any:
    config = PeftConfig.from_pretrained(adapter)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    set_peft_model_state_dict(model, load_peft_weights(str(adapter)))
    return model


def load_by_injection(base: Path, adapter: Path) -> Any:
    config = PeftConfig.from_pretrained(adapter)
    model = inject_adapter_in_model(config, AutoModelForCausalLM.from_pretrained(base), low_cpu_mem_usage=True)
    set_peft_model_state_dict(model, load_peft_weights(str(adapter)), low_cpu_mem_usage=True)
    return model


def load_with_a_configuration(base: Path, adapter: Path) -> Any:
    config = PeftConfig.from_pretrained(adapter)
    config.layer_budget = 10
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, config=config)
    assert model.peft_config["default"].layer_budget == 10
    return model


def load_into_a_base_that_carries_another(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, DrLLMConfig(router_width=8), adapter_name="first")
    with pytest.warns(UserWarning, match="Already found a `peft_config`"):
        return PeftModel.from_pretrained(model, adapter, adapter_name="second")


def load_into_its_own_name(base: Path, adapter: Path) -> Any:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    teach(model, seed=9)
    model.load_adapter(adapter, "default")
    return model


def load_with_another_name(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, adapter_name="mine")


def load_beside_another(base: Path, adapter: Path) -> Any:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), DrLLMConfig(router_width=8))
    model.load_adapter(adapter, adapter_name="second")
    model.set_adapter("second")
    return model


def load_with_auto_peft(base: Path, adapter: Path) -> Any:
    return AutoPeftModelForCausalLM.from_pretrained(adapter)


def load_with_auto_transformers(base: Path, adapter: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(adapter)


def load_into_transformers(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_adapter(str(adapter))
    return model


def load_into_transformers_by_name(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_adapter(str(adapter), adapter_name="mine")
    return model


LOADERS = [
    load_with_peft,
    load_with_every_option,
    load_to_train,
    load_into_a_state_dict,
    load_by_injection,
    load_with_a_configuration,
    load_into_a_base_that_carries_another,
    load_into_its_own_name,
    load_with_another_name,
    load_beside_another,
    load_with_auto_peft,
    load_with_auto_transformers,
    load_into_transformers,
    load_into_transformers_by_name,
]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.filterwarnings("ignore:(Already found|Ephemeral)")
@torch.no_grad()
def test_every_loader_gives_what_was_saved(load: Callable[[Path, Path], Any], saved: Any) -> None:
    base, adapter, logits, decisions = saved
    model = load(base, adapter).eval()
    assert torch.equal(model(IDS).logits, logits)
    assert torch.equal(last_decisions(model), decisions)


def test_a_new_process_loads_it(saved: Any) -> None:
    _base, adapter, logits, _ = saved
    code = (
        "import sys, torch, drllm_adapter\n"
        "from transformers import AutoModelForCausalLM\n"
        "torch.set_num_threads(1)\n"
        "ids = torch.tensor(eval(sys.argv[2]))\n"
        "with torch.no_grad(): logits = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()(ids).logits\n"
        "torch.save(logits, sys.argv[3])\n"
    )
    out = adapter.parent / "logits.pt"
    subprocess.run([sys.executable, "-c", code, str(adapter), str(IDS.tolist()), str(out)], check=True)
    assert torch.equal(torch.load(out), logits)


def test_only_the_routers_are_saved(saved: Any) -> None:
    weights = load_file(saved[1] / WEIGHTS)
    assert len(weights) == 5 * 4
    assert all("drllm_router" in name and value.dtype == torch.float32 for name, value in weights.items())
    assert {path.name for path in saved[1].iterdir()} == {"adapter_config.json", WEIGHTS, "README.md"}


@torch.no_grad()
def test_adapters_are_saved_side_by_side(saved: Any, tmp_path: Path) -> None:
    base, adapter, logits, _ = saved
    model = load_with_peft(base, adapter).eval()
    model.add_adapter("second", DrLLMConfig(router_width=16, layers_to_transform=[1, 3]))
    teach(model, seed=1)
    model.load_adapter(adapter, "default")
    model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert not (tmp_path / "one" / "second").exists()
    model.save_pretrained(tmp_path / "all")
    model.set_adapter("second")
    second = model(IDS).logits
    for folder, arguments in (
        (tmp_path / "all" / "second", {"adapter_name": "renamed"}),
        (tmp_path / "all", {"subfolder": "second"}),
    ):
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder, **arguments)
        assert torch.equal(loaded(IDS).logits, second)
        assert not any(weight.requires_grad for weight in loaded.parameters())
    for folder in ("one", "all"):
        assert torch.equal(load_with_peft(base, tmp_path / folder)(IDS).logits, logits)


@pytest.mark.transformers_adapters
@torch.no_grad()
def test_transformers_saves_what_peft_loads(saved: Any, tmp_path: Path) -> None:
    base, adapter, logits, _ = saved
    load_into_transformers(base, adapter).save_pretrained(tmp_path / "again")
    assert torch.equal(load_with_peft(base, tmp_path / "again").eval()(IDS).logits, logits)


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)


def first(weights: dict[str, torch.Tensor]) -> str:
    return min(weights)


def with_first(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda adapter: change_weights(adapter, lambda w: {**w, first(w): value(w[first(w)])})


DAMAGES: dict[str, Callable[[Path], None]] = {
    "nan": with_first(lambda value: value * float("nan")),
    "infinite": with_first(lambda value: value + float("inf")),
    "other shape": with_first(lambda value: torch.cat([value, value])),
    "whole numbers": with_first(lambda value: value.int()),
    "one bit": with_first(lambda value: value.add(1e-3)),
    "missing": lambda a: change_weights(a, lambda w: {k: v for k, v in w.items() if k != first(w)}),
    "renamed": lambda a: change_weights(a, lambda w: {k.replace("drllm_router", "router"): v for k, v in w.items()}),
    "of no router": lambda a: change_weights(a, lambda w: {**w, first(w).replace(".0.", ".9."): w[first(w)].clone()}),
    "another architecture": lambda a: change_config(a, base_model_type="gpt2"),
    "another depth": lambda a: change_config(a, num_blocks=7),
    "another width": lambda a: change_config(a, hidden_size=64),
}


@pytest.mark.parametrize("load", [load_with_peft, load_with_auto_transformers, load_into_transformers])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_damaged_adapters_are_refused(damage: str, load: Callable[[Path, Path], Any], saved: Any) -> None:
    base, adapter, *_ = saved
    DAMAGES[damage](adapter)
    with pytest.raises(DrLLMError) as raised:
        load(base, adapter)
    assert re.fullmatch(r"[^\n]+\.", str(raised.value))


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_unreadable_weight_files_are_refused(content: bytes | None, saved: Any) -> None:
    base, adapter, *_ = saved
    path = adapter / WEIGHTS
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    for load in (load_with_peft, load_with_auto_transformers, load_into_transformers):
        with pytest.raises(DrLLMError, match=r"adapter_model\.safetensors must be a safetensors file"):
            load(base, adapter)


def test_pickles_are_neither_written_nor_read(saved: Any, tmp_path: Path) -> None:
    base, adapter, *_ = saved
    model = load_with_peft(base, adapter)
    for arguments, options in (((False,), {}), ((), {"safe_serialization": False})):
        with pytest.raises(DrLLMError, match="safetensors"):
            model.save_pretrained(tmp_path / "pickled", *arguments, **options)
    assert not (tmp_path / "pickled").exists()
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    load_with_peft(base, adapter)  # beside the safetensors it does no harm
    (adapter / WEIGHTS).unlink()
    with pytest.raises(DrLLMError, match="only a pickle"):
        load_with_peft(base, adapter)


@torch.no_grad()
def test_a_saved_configuration_serves_new_routers(saved: Any, tmp_path: Path) -> None:
    """The checksum in it is of the weights that were saved with it, and no others are held against it."""
    base, adapter, logits, _ = saved
    config = PeftConfig.from_pretrained(adapter)
    config.inference_mode = False
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    assert torch.equal(model(IDS).logits, AutoModelForCausalLM.from_pretrained(base)(IDS).logits)
    model.save_pretrained(tmp_path / "fresh")
    # And loading older weights under the name of an adapter that was saved since, as Trainer does for the best ones.
    model.load_adapter(adapter, "default")
    assert torch.equal(model.eval()(IDS).logits, logits)


def test_unknown_fields_load_with_a_warning(saved: Any) -> None:
    _base, adapter, *_ = saved
    change_config(adapter, from_the_future=1)
    with pytest.warns(UserWarning, match="from_the_future"):
        assert PeftConfig.from_pretrained(adapter).num_windows == 8


def test_the_adapter_follows_a_copied_folder(saved: Any, tmp_path: Path) -> None:
    base, adapter, logits, _ = saved
    moved = tmp_path / "elsewhere"
    shutil.copytree(adapter, moved)
    shutil.rmtree(adapter)
    with torch.no_grad():
        assert torch.equal(load_with_peft(base, moved).eval()(IDS).logits, logits)


def test_a_foreign_architecture_is_refused_by_name() -> None:
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(DrLLMError, match=r"bert is not \(an encoder"):
        get_peft_model(BertLMHeadModel(config), DrLLMConfig())
