"""An attach or a load that fails, at whatever place and by whatever error, leaves the model as it was."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_peft_method import IDS, logits
from test_saving_and_loading import WEIGHTS, teach
from transformers import AutoModelForSequenceClassification
from unrolled import tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, last_decisions
from drllm_adapter.adapter.layer import RoutedLayer, find_routed_layers, routed_layers

pytestmark = pytest.mark.filterwarnings("ignore:(Already found|You are trying to modify|Adapter|Setting)")


def attributes(model: Any) -> set[Any]:
    """Everything that attaching changes: modules, attributes, hooks, what trains."""
    modules = list(torch.nn.Module.named_modules(model))
    return {
        *((name, type(module), len(module._forward_pre_hooks), len(module._forward_hooks)) for name, module in modules),
        *((name, attribute) for name, module in modules for attribute in vars(module)),
        *((name, weight.requires_grad) for name, weight in model.named_parameters()),
    }


ATTACH: dict[str, Callable[[Any, DrLLMConfig, str], Any]] = {
    "get_peft_model": lambda model, config, name: get_peft_model(model, config, name),
    "inject_adapter_in_model": lambda model, config, name: inject_adapter_in_model(config, model, name),
    "add_adapter": lambda model, config, name: model.add_adapter(config, name),
}
WAYS = [
    "get_peft_model",
    "inject_adapter_in_model",
    pytest.param("add_adapter", marks=pytest.mark.transformers_adapters),
]


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("attach", WAYS)
def test_a_name_that_cannot_be_used(attach: str, below: bool) -> None:
    model: Any = tiny_model("llama")
    if below and attach == "get_peft_model":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    before, expected = attributes(model), logits(model)
    with pytest.raises(KeyError, match=r"v1\.0"):
        ATTACH[attach](model, DrLLMConfig(), "v1.0")
    assert attributes(model) == before
    assert torch.equal(logits(model), expected)
    ATTACH[attach](model, DrLLMConfig(), "v1")


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("attach", WAYS)
def test_an_error_at_some_block(attach: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    before = attributes(model)
    update = RoutedLayer.update_layer

    def fail(self: RoutedLayer, *args: Any) -> None:
        if self.index == 3:
            raise error
        update(self, *args)

    monkeypatch.setattr(RoutedLayer, "update_layer", fail)
    with pytest.raises(error):
        ATTACH[attach](model, DrLLMConfig(), "default")
    assert attributes(model) == before


def test_a_further_adapter_that_fails_leaves_the_first() -> None:
    model = get_peft_model(tiny_model("llama"), DrLLMConfig()).eval()
    teach(model)
    before, expected = attributes(model), logits(model)
    with pytest.raises(KeyError, match=r"v1\.0"):
        model.add_adapter("v1.0", DrLLMConfig(router_width=4))
    with pytest.raises(KeyError, match=r"v1\.0"):
        get_peft_model(model.get_base_model(), DrLLMConfig(), "v1.0")
    assert attributes(model) == before
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), expected)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = get_peft_model(tiny_model("llama"), DrLLMConfig())
    teach(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def damage(folder: Path, how: str) -> None:
    if how == "missing":
        (folder / WEIGHTS).unlink()
    elif how == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    else:
        save_file({name: value + 1 for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


LOAD: dict[str, Callable[[Any, Path], Any]] = {
    "PeftModel.from_pretrained": lambda model, folder: PeftModel.from_pretrained(model, folder),
    "its keywords": lambda model, folder: PeftModel.from_pretrained(model=model, model_id=folder),
    "transformers' load_adapter": lambda model, folder: model.load_adapter(str(folder)),
    "trainable": lambda model, folder: PeftModel.from_pretrained(model, folder, is_trainable=True),
}


@pytest.mark.parametrize("how", ["missing", "truncated", "changed"])
@pytest.mark.parametrize("load", LOAD)
def test_a_refused_load_leaves_the_base(load: str, how: str, adapter: Path) -> None:
    model = tiny_model("llama")
    before = attributes(model)
    damaged = adapter.parent / "damaged"
    damaged.mkdir()
    for file in adapter.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    damage(damaged, how)
    with pytest.raises((DrLLMError, OSError, ValueError)):
        LOAD[load](model, damaged)
    assert attributes(model) == before
    LOAD[load](model, adapter)
    logits(model)


@pytest.mark.parametrize("how", ["missing", "truncated", "changed"])
def test_a_refused_load_leaves_the_adapters_there_are(how: str, adapter: Path) -> None:
    peft_model = PeftModel.from_pretrained(tiny_model("llama"), adapter)
    model = tiny_model("llama")
    model.load_adapter(str(adapter), "first")
    expected = logits(peft_model)
    damage(adapter, how)
    for loaded, name in ((peft_model, "default"), (model, "first")):
        before = attributes(loaded)
        with pytest.raises((DrLLMError, OSError, ValueError)):
            loaded.load_adapter(str(adapter), "second")
        assert attributes(loaded) == before
        assert list(loaded.peft_config) == [name]
        assert torch.equal(logits(loaded), expected)


def test_an_interrupted_load_leaves_the_base(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    for name, method in (("PeftModel.from_pretrained", "_load_from_state_dict"), ("transformers' load_adapter", "_x")):
        model = tiny_model("llama")
        before = attributes(model)
        with monkeypatch.context() as patched:
            if method == "_x":
                patched.setattr(type(model), "_load_pretrained_model", interrupt)
            else:
                patched.setattr(RoutedLayer, method, interrupt)
            with pytest.raises(KeyboardInterrupt):
                LOAD[name](model, adapter)
        assert attributes(model) == before


def test_a_model_without_a_head_is_refused_before_it_is_wrapped(adapter: Path) -> None:
    decoder = tiny_model("llama").model
    config = copy.deepcopy(tiny_model("llama").config)
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    for model in (decoder, classifier):
        before, expected = attributes(model), model(IDS)[0]
        for attach in (lambda model: get_peft_model(model, DrLLMConfig()), LOAD["PeftModel.from_pretrained"]):
            with pytest.raises(DrLLMError, match="FEATURE_EXTRACTION"):
                attach(model) if attach is not LOAD["PeftModel.from_pretrained"] else attach(model, adapter)
        assert attributes(model) == before
        routed = get_peft_model(model, DrLLMConfig(task_type="FEATURE_EXTRACTION")).eval()
        assert torch.equal(routed(IDS)[0], expected)
        assert last_decisions(routed).tolist() == [[1] * 5] * len(IDS)
        routed.unload()
        saved: Any = PeftConfig.from_pretrained(str(adapter))
        saved.task_type = "FEATURE_EXTRACTION"
        PeftModel.from_pretrained(model, adapter, config=saved)(IDS)


def test_routers_without_weights_are_listed_but_neither_run_nor_saved(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model("llama"), DrLLMConfig(), low_cpu_mem_usage=True).eval()
    weights = get_peft_model_state_dict(model)
    assert len(weights) == 20
    assert {value.device.type for value in weights.values()} == {"meta"}
    for call in (lambda: logits(model), lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(DrLLMError, match="low_cpu_mem_usage"):
            call()
    assert not list(tmp_path.iterdir())
    other = get_peft_model(tiny_model("llama"), DrLLMConfig()).eval()
    teach(other)
    set_peft_model_state_dict(model, get_peft_model_state_dict(other), low_cpu_mem_usage=True)
    assert torch.equal(logits(model), logits(other))


@pytest.mark.parametrize("layers", [[1, 2], None])
def test_injecting_by_a_state_dict(layers: list[int] | None, recwarn: pytest.WarningsRecorder) -> None:
    source = inject_adapter_in_model(DrLLMConfig(layers_to_transform=[1, 2]), tiny_model("llama")).eval()
    teach(source)
    weights = get_peft_model_state_dict(source)
    config = DrLLMConfig(layers_to_transform=layers)
    model = inject_adapter_in_model(config, tiny_model("llama"), state_dict=weights).eval()
    said = [str(warning.message) for warning in recwarn if "blocks" in str(warning.message)]
    assert len(said) == (layers is None)
    assert not any("additional" in str(warning.message) for warning in recwarn)
    assert len(find_routed_layers(model)) == 5
    assert [bool(layer.drllm_router) for layer in routed_layers(model)] == [False, True, True, False, False]
    set_peft_model_state_dict(model, weights)
    assert torch.equal(logits(model), logits(source))
