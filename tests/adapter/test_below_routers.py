"""What lies below the routers - a LoRA, the base, its decoder - saves, loads and changes as if they were not there."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from test_peft_method import IDS, logits
from test_saving_and_loading import teach
from transformers import AutoModel, AutoModelForCausalLM
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions
from drllm_adapter.adapter.layer import find_routed_layers

pytestmark = pytest.mark.filterwarnings(
    "ignore:(Already found|You are trying to modify|Adapter|Could not find|embeddings are not saved)"
)
BELOW: dict[str, Any] = {
    "LoRA": LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
    "LoRA on embeddings and blocks": LoraConfig(target_modules=["embed_tokens", "q_proj"], init_lora_weights=False),
    "LoRA with a trained head": LoraConfig(
        target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False
    ),
    "IA3": IA3Config(target_modules=["v_proj"], feedforward_modules=[], init_ia3_weights=False),
}


def stacked(kind: str = "LoRA") -> tuple[Any, Any, Any]:
    """The model with routers, the PeftModel below and a copy of that without routers."""
    torch.manual_seed(3)
    lower = get_peft_model(tiny_model("llama"), copy.deepcopy(BELOW[kind])).eval()
    alone = copy.deepcopy(lower)
    model = get_peft_model(lower, DrLLMConfig(), adapter_name="routers").eval()
    teach(model)
    return model, lower, alone


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("call", ["unload", "merge_and_unload"])
@pytest.mark.parametrize("of", [lambda lower: lower, lambda lower: lower.base_model], ids=["PeftModel", "tuner"])
@pytest.mark.parametrize("kind", BELOW)
def test_unloading_below_is_refused_and_the_way_around_works(kind: str, of: Callable[..., Any], call: str) -> None:
    model, lower, alone = stacked(kind)
    routed = logits(model)
    with pytest.raises(DrLLMError, match=r"call unload\(\) of the model with routers first"):
        getattr(of(lower), call)()
    assert torch.equal(logits(model), routed)
    expected = logits(getattr(alone, call)())
    below = model.unload()
    assert below is lower
    base = getattr(below, call)()
    assert torch.equal(logits(base), expected)
    assert not base._forward_pre_hooks
    assert base.state_dict().keys() == tiny_model("llama").state_dict().keys()


@pytest.mark.parametrize("kind", BELOW)
def test_merging_in_place_below(kind: str) -> None:
    model, lower, alone = stacked(kind)
    routed = logits(model)
    lower.merge_adapter()
    alone.merge_adapter()
    assert any(getattr(module, "merged", False) for module in lower.modules())
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(alone))
    torch.testing.assert_close(logits(model), routed, rtol=1e-4, atol=1e-4)
    lower.unmerge_adapter()
    torch.testing.assert_close(logits(model), routed, rtol=1e-4, atol=1e-4)


def test_adding_and_deleting_below() -> None:
    model, lower, alone = stacked()
    for peft_model in (lower, alone):
        torch.manual_seed(7)
        peft_model.add_adapter("second", LoraConfig(target_modules=["lm_head", "k_proj"], init_lora_weights=False))
        peft_model.set_adapter("second")
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(alone))
    for peft_model in (lower, alone):
        peft_model.delete_adapter("second")
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(alone))
    with force_decisions(model, [1, 0, 2, 1, 1]):
        logits(model)


@pytest.mark.parametrize("kind", BELOW)
def test_state_below(kind: str, tmp_path: Path) -> None:
    model, lower, alone = stacked(kind)
    assert same(lower.state_dict(), alone.state_dict())
    assert same(lower.get_base_model().state_dict(), alone.get_base_model().state_dict())
    weights = get_peft_model_state_dict(lower)
    assert same(weights, get_peft_model_state_dict(alone))
    lower.save_pretrained(tmp_path)
    alone.save_pretrained(tmp_path / "alone")
    name = "adapter_model.safetensors"
    assert same(load_file(tmp_path / name), load_file(tmp_path / "alone" / name))

    doubled = {name: value * 2 for name, value in weights.items()}
    for peft_model in (lower, alone):
        set_peft_model_state_dict(peft_model, doubled)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(alone))
    routed, whole = logits(model), model.state_dict()
    assert any(".drllm_router." in name for name in whole)
    again, _, _ = stacked(kind)
    again.load_state_dict(whole)
    assert torch.equal(logits(again), routed)


PATHS: dict[str, Callable[[Any], Any]] = {
    "get_base_model": lambda model: model.get_base_model(),
    "the attributes": lambda model: model.base_model.model,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_base_is_saved_without_the_routers(architecture: str, path: str, tmp_path: Path) -> None:
    plain = tiny_model(architecture)
    model = get_peft_model(copy.deepcopy(plain), DrLLMConfig()).eval()
    teach(model)
    routed = logits(model)
    base = PATHS[path](model)
    assert same(base.state_dict(), plain.state_dict())
    base.save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "given", state_dict=base.state_dict())
    getattr(base, base.base_model_prefix).save_pretrained(tmp_path / "decoder")
    for name in ("base", "given"):
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / name)), logits(plain))
    decoder = AutoModel.from_pretrained(tmp_path / "decoder")
    assert torch.equal(decoder(IDS)[0], getattr(plain, plain.base_model_prefix)(IDS)[0])
    for file in tmp_path.rglob("*.safetensors"):
        assert not any(".base_layer." in key or "drllm" in key for key in load_file(file))
    assert torch.equal(logits(model), routed)


def test_injected_routers_and_their_base(tmp_path: Path) -> None:
    plain = tiny_model("llama")
    model = inject_adapter_in_model(DrLLMConfig(), copy.deepcopy(plain)).eval()
    teach(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(plain))
    assert len(get_peft_model_state_dict(model)) == 20


def test_a_base_with_another_adapter_in_its_blocks_is_not_saved_as_a_base(tmp_path: Path) -> None:
    model, lower, _ = stacked()
    for part in (lower.get_base_model(), lower.get_base_model().model):
        with pytest.raises(DrLLMError, match="without adapters inside its blocks"):
            part.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model.unload().merge_and_unload().save_pretrained(tmp_path)
    assert not any(".base_layer." in key for key in load_file(tmp_path / "model.safetensors"))


def test_a_resized_base_is_saved_as_the_warning_says(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), DrLLMConfig()).eval()
    teach(model)
    model.get_base_model().resize_token_embeddings(VOCABULARY + 4)
    with pytest.warns(UserWarning, match=r"get_base_model\(\)\.save_pretrained"):
        model.save_pretrained(tmp_path / "routers")
    model.get_base_model().save_pretrained(tmp_path / "resized")
    resized = AutoModelForCausalLM.from_pretrained(tmp_path / "resized")
    assert len(resized.get_input_embeddings().weight) == VOCABULARY + 4
    assert torch.equal(logits(PeftModel.from_pretrained(resized, tmp_path / "routers")), logits(model))


def test_nothing_stands_in_after_unloading() -> None:
    model, lower, alone = stacked()
    model.unload()
    assert not find_routed_layers(lower)
    for (_, module), (_, other) in zip(lower.named_modules(), alone.named_modules(), strict=True):
        assert vars(module).keys() == vars(other).keys()
