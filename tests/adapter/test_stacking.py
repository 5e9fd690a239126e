"""A LoRA and routers on one base: the LoRA lies below, inside the blocks; both are saved and loaded as if alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_peft_method import IDS, logits
from test_saving_and_loading import WEIGHTS, teach
from unrolled import tiny_model, unrolled

from drllm_adapter import DrLLMConfig, force_decisions, last_decisions

pytestmark = pytest.mark.filterwarnings("ignore:(Already found|You are trying to modify|Adapter)")
GENERATE = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 5, "do_sample": False}


def lora_config(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **changes})


@pytest.fixture
def base() -> Any:
    model = tiny_model("llama")
    model.name_or_path = "some/base"
    return model


@pytest.fixture
def lora(base: Any) -> Any:
    torch.manual_seed(3)
    return get_peft_model(copy.deepcopy(base), lora_config(modules_to_save=["lm_head"])).eval()


@pytest.fixture
def stacked(lora: Any) -> Any:
    model = get_peft_model(lora, DrLLMConfig(), adapter_name="routers").eval()
    teach(model)
    return model


@torch.no_grad()
def test_routed_execution_runs_the_blocks_with_the_lora_in_them(lora: Any) -> None:
    path = [1, 0, 2, 1, 1]
    expected, merged = logits(lora), copy.deepcopy(lora).merge_and_unload()
    model = get_peft_model(lora, DrLLMConfig(), adapter_name="routers").eval()
    assert torch.equal(logits(model), expected)
    with force_decisions(model, path):
        torch.testing.assert_close(logits(model), logits(unrolled(merged, path)), rtol=1e-4, atol=1e-4)
        for cached in (True, False):
            tokens = model.generate(IDS, use_cache=cached, **GENERATE)
            assert torch.equal(tokens, unrolled(merged, path).generate(IDS, **GENERATE))


@torch.no_grad()
def test_generation_without_a_cache_keeps_the_route(stacked: Any) -> None:
    cached = stacked.generate(IDS, **GENERATE)
    decisions = last_decisions(stacked)
    assert torch.equal(stacked.generate(IDS, use_cache=False, **GENERATE), cached)
    assert torch.equal(last_decisions(stacked), decisions)


def test_each_keeps_its_configuration_and_its_adapters(lora: Any) -> None:
    lora = lora.merge_and_unload()
    lora = get_peft_model(lora, lora_config()).eval()
    lora.add_adapter("other", lora_config())
    before = logits(lora)
    stacked = get_peft_model(lora, DrLLMConfig()).eval()  # both are called "default"
    assert isinstance(lora.peft_config["default"], LoraConfig)
    assert isinstance(stacked.peft_config["default"], DrLLMConfig)
    assert stacked.peft_config["default"].base_model_name_or_path == "some/base"
    stacked.add_adapter("second", DrLLMConfig())
    stacked.set_adapter("second")
    assert torch.equal(logits(stacked), before)
    lora.set_adapter("other")
    assert not torch.equal(logits(stacked), before)


def test_modules_to_save_below(lora: Any) -> None:
    before = logits(lora)
    with pytest.raises(ValueError, match="name of their own"):
        get_peft_model(copy.deepcopy(lora), DrLLMConfig())
    stacked = get_peft_model(lora, DrLLMConfig(), adapter_name="routers").eval()
    stacked.add_adapter("second", DrLLMConfig())
    stacked.set_adapter("second")
    assert torch.equal(logits(stacked), before)


def test_disabling(base: Any, lora: Any) -> None:
    before = logits(lora)
    stacked = get_peft_model(lora, DrLLMConfig(), adapter_name="routers").eval()
    teach(stacked)
    routed = logits(stacked)
    assert not torch.equal(routed, before)
    with stacked.disable_adapter():
        assert torch.equal(logits(stacked), before)
    with lora.disable_adapter():  # PEFT disables everything below it, so the routers as well
        assert torch.equal(logits(stacked), logits(base))
    assert torch.equal(logits(stacked), routed)


def test_routers_fit_with_and_without_the_lora(base: Any, stacked: Any, tmp_path: Path) -> None:
    routed = logits(stacked)
    stacked.save_pretrained(tmp_path)
    stacked.unload().save_pretrained(tmp_path / "lora")
    weights = load_file(tmp_path / "routers" / WEIGHTS)
    assert set(weights) == {name for name in weights if ".layers." in name and ".drllm_router." in name}
    assert len(weights) == 20
    again = PeftModel.from_pretrained(
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora"), tmp_path / "routers", adapter_name="routers"
    )
    assert torch.equal(logits(again), routed)
    alone = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "routers")
    own = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    teach(own)
    assert torch.equal(logits(alone), logits(own))


def test_the_lora_is_saved_without_the_routers(base: Any, lora: Any, tmp_path: Path) -> None:
    lora.save_pretrained(tmp_path / "before")
    stacked = get_peft_model(lora, DrLLMConfig(), adapter_name="routers").eval()
    teach(stacked)
    routed = logits(stacked)
    lora.save_pretrained(tmp_path / "under")
    assert torch.equal(logits(stacked), routed)
    before, under = (load_file(tmp_path / name / WEIGHTS) for name in ("before", "under"))
    assert before.keys() == under.keys()
    assert all(torch.equal(before[name], under[name]) for name in before)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "under")
    assert torch.equal(logits(loaded), logits(stacked.unload()))


def test_routers_first_is_refused_and_the_way_around_works(base: Any, tmp_path: Path) -> None:
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    teach(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="save the routers, call unload"):
        get_peft_model(model, lora_config())
    lora = get_peft_model(model.unload(), lora_config(init_lora_weights=True)).eval()
    stacked = PeftModel.from_pretrained(lora, tmp_path)
    own = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(stacked), logits(own))  # a fresh LoRA changes nothing


def test_unload_gives_the_lora_model_back(lora: Any) -> None:
    expected = logits(lora)
    stacked = get_peft_model(lora, DrLLMConfig(), adapter_name="routers").eval()
    teach(stacked)
    routed = logits(stacked)
    for merge in (lora.merge_and_unload, lora.unload, stacked.merge_and_unload):
        with pytest.raises(ValueError, match=r"unload\(\)"):
            merge()
    assert torch.equal(logits(stacked), routed)
    assert stacked.unload() is lora
    assert torch.equal(logits(lora), expected)
    torch.testing.assert_close(logits(lora.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)


def test_copies_of_a_stack(stacked: Any) -> None:
    routed = logits(stacked)
    twin = copy.deepcopy(stacked)
    stacked.unload()
    assert torch.equal(logits(twin), routed)
    assert isinstance(twin.unload(), PeftModel)


def test_both_train_together(lora: Any) -> None:
    model = get_peft_model(lora, DrLLMConfig(), adapter_name="routers").train()
    model(IDS, labels=IDS).loss.backward()
    with_gradient = {name.split(".")[-3] for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {"lora_A", "lora_B", "routers", "modules_to_save"}


@pytest.mark.transformers_adapters
def test_inside_one_transformers_model(base: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(base)
    torch.manual_seed(4)
    model.add_adapter(lora_config(), "lora")
    with_lora = logits(model)
    model.save_pretrained(tmp_path / "before")
    model.add_adapter(DrLLMConfig(), "routers")
    model.set_adapter(["lora", "routers"])
    assert torch.equal(logits(model), with_lora)
    teach(model)
    routed = logits(model)
    model.disable_adapters()
    assert torch.equal(logits(model), logits(base))
    model.enable_adapters()
    assert torch.equal(logits(model), routed)
    for name in ("lora", "routers"):
        model.set_adapter(name)
        model.save_pretrained(tmp_path / name)
    before, under = (load_file(tmp_path / name / WEIGHTS) for name in ("before", "lora"))
    assert before.keys() == under.keys()
    again = copy.deepcopy(base)
    again.load_adapter(str(tmp_path / "lora"), "lora")
    again.load_adapter(str(tmp_path / "routers"), "routers")
    again.set_adapter(["lora", "routers"])
    assert torch.equal(logits(again), routed)
