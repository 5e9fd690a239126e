"""What PEFT's users know from LoRA works here, or is refused by name with the way around."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from peft import (
    LoraConfig,
    PeftConfig,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from test_saving_and_loading import teach
from transformers.integrations.peft import MIN_PEFT_VERSION
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, DrLLMModel, force_decisions, last_decisions, set_depth_control

IDS = torch.randint(1, VOCABULARY, (4, 11), generator=torch.Generator().manual_seed(2))
LORA = LoraConfig(target_modules=["q_proj"])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


@pytest.fixture
def base() -> Any:
    return tiny_model("llama")


@pytest.fixture
def model(base: Any) -> Any:
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    teach(model)
    assert not torch.equal(logits(model), logits(base))
    return model


# Attaching


def test_only_routers_train(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(("drllm_router" in name) == weight.requires_grad for name, weight in model.named_parameters())
    trainable, total = model.get_nb_trainable_parameters()
    assert trainable == 5 * (32 * 128 + 128 + 3 * 128 + 3)
    assert total == sum(weight.numel() for weight in model.parameters())
    model.print_trainable_parameters()
    assert f"trainable params: {trainable:,d} || all params: {total:,d}" in capsys.readouterr().out


def test_the_base_model_is_the_one_given(base: Any) -> None:
    model = get_peft_model(base, DrLLMConfig())
    assert model.get_base_model() is base
    assert isinstance(model.base_model, DrLLMModel)


def test_names_of_the_weights(model: Any) -> None:
    expected = {
        f"base_model.model.model.layers.{block}.drllm_router.{layer}.{kind}"
        for block in range(5)
        for layer in ("down", "up")
        for kind in ("weight", "bias")
    }
    assert get_peft_model_state_dict(model).keys() == expected


@settings(max_examples=20)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "num_windows": st.integers(1, 20),
            "router_width": st.integers(1, 300),
            "layers_to_transform": st.none() | st.integers(0, 9) | st.sets(st.integers(0, 9), min_size=1).map(list),
            "depth_control": st.floats(-1, 1),
            "layer_budget": st.none() | st.integers(10, 99),
            "depth_penalty": st.floats(0, 10),
            "training": st.none() | st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=2),
            "task_type": st.sampled_from(["CAUSAL_LM", "FEATURE_EXTRACTION"]),
            "revision": st.none() | st.text("abc", min_size=1),
        },
    )
)
def test_configurations_survive_a_file(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("config")
    config = DrLLMConfig(**fields)
    config.save_pretrained(folder)
    for loaded in (PeftConfig.from_pretrained(folder), DrLLMConfig.from_pretrained(folder)):
        assert isinstance(loaded, DrLLMConfig)
        assert loaded == config
    assert copy.deepcopy(config) == config


@pytest.mark.filterwarnings("ignore")
def test_prepared_for_kbit_training(base: Any) -> None:
    model = get_peft_model(prepare_model_for_kbit_training(base), DrLLMConfig()).train()
    model(IDS, labels=IDS).loss.backward()
    assert all(
        (weight.grad is not None and bool(weight.grad.any())) == ("drllm_router" in name and "down" not in name)
        for name, weight in model.named_parameters()
    )  # the first layer of a fresh router has no gradient yet: its second one is zero


# Several adapters


def test_several_adapters_one_active(base: Any, model: Any) -> None:
    routed = logits(model)
    model.add_adapter("second", DrLLMConfig(router_width=16, layers_to_transform=[1, 2]))
    assert torch.equal(logits(model), routed)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(base))
    active = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert active
    assert all(".second." in name for name in active)
    model.set_adapter("default", inference_mode=True)
    assert torch.equal(logits(model), routed)
    assert not any(weight.requires_grad for weight in model.parameters())
    model.set_requires_grad("default")
    assert sum(weight.requires_grad for weight in model.parameters()) == 20
    model.delete_adapter("second")
    assert torch.equal(logits(model), routed)
    assert not any("second" in name for name in model.state_dict())


@pytest.mark.filterwarnings("ignore:Adapter")
def test_deleting_the_active_adapter(base: Any, model: Any) -> None:
    routed = logits(model)
    model.add_adapter("second", DrLLMConfig())
    model.set_adapter("second")
    model.delete_adapter("second")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), routed)
    model.delete_adapter("default")
    assert model.active_adapters == []
    assert torch.equal(logits(model.base_model), logits(base))
    model.add_adapter("third", DrLLMConfig())
    model.set_adapter("third")
    assert torch.equal(logits(model), logits(base))
    teach(model)
    assert torch.equal(logits(model), routed)


@pytest.mark.parametrize(
    ("name", "config", "error"),
    [
        ("default", DrLLMConfig(), ValueError),
        ("fresh", DrLLMConfig(layers_to_transform=[7]), DrLLMError),
        ("fresh", DrLLMConfig(num_blocks=9), DrLLMError),
        ("a.dot", DrLLMConfig(), KeyError),
        ("fresh", LORA, ValueError),
    ],
)
def test_an_adapter_that_is_refused_leaves_nothing(model: Any, name: str, config: Any, error: type[Exception]) -> None:
    routed, names = logits(model), set(model.state_dict())
    with pytest.raises(error):
        model.add_adapter(name, config)
    assert list(model.peft_config) == ["default"]
    assert set(model.state_dict()) == names
    assert model.get_model_status().available_adapters == ["default"]
    assert torch.equal(logits(model), routed)


def test_disabling_nests_and_survives_errors(base: Any, model: Any) -> None:
    routed = logits(model)
    with model.disable_adapter():
        with model.disable_adapter():
            assert torch.equal(logits(model), logits(base))
        assert torch.equal(logits(model), logits(base))
    assert torch.equal(logits(model), routed)
    with pytest.raises(KeyError), model.disable_adapter():
        raise KeyError
    assert torch.equal(logits(model), routed)
    model.base_model.disable_adapter_layers()
    with model.disable_adapter():
        pass
    assert torch.equal(logits(model), logits(base))
    model.base_model.enable_adapter_layers()
    assert torch.equal(logits(model), routed)


def test_status(model: Any) -> None:
    model.add_adapter("second", DrLLMConfig(layers_to_transform=[1]))
    status = model.get_model_status()
    assert (status.adapter_model_type, status.num_adapter_layers, status.enabled) == ("DrLLMModel", 5, True)
    assert (status.active_adapters, status.available_adapters) == (["default"], ["default", "second"])
    assert status.requires_grad == {"default": True, "second": False}
    assert status.peft_types == {"default": "DRLLM", "second": "DRLLM"}
    layers = model.get_layer_status()
    assert [layer.module_type for layer in layers] == ["RoutedLayer"] * 5
    assert [layer.available_adapters for layer in layers] == [["default"], ["default", "second"], *[["default"]] * 3]
    with model.disable_adapter():
        assert model.get_model_status().enabled is False


# Copies, and the base back


def test_unload_gives_the_base_back(base: Any, model: Any) -> None:
    plain = model.unload()
    assert type(plain) is type(base)
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(weight, base.state_dict()[name]) for name, weight in plain.state_dict().items())
    assert torch.equal(logits(plain), logits(base))
    assert not {"prepare_inputs_for_generation", "save_pretrained", "peft_config"} & vars(plain).keys()
    assert not any(module._forward_pre_hooks for module in plain.modules())
    again = get_peft_model(plain, DrLLMConfig()).eval()
    assert torch.equal(logits(again), logits(base))


def through_a_file(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_a_file])
def test_copies_are_independent(model: Any, twin_of: Callable[[Any], Any]) -> None:
    routed = logits(model)
    twin = twin_of(model)
    assert torch.equal(logits(twin), routed)
    set_depth_control(twin, -1)
    with force_decisions(twin, [2] * 5):
        assert torch.equal(logits(model), routed)
    assert last_decisions(model).tolist() != [[2] * 5] * 4
    tokens = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 3, "use_cache": False}
    before = model.generate(IDS, **tokens)
    set_depth_control(twin, -0.5)
    assert torch.equal(twin.generate(IDS, **tokens), before)
    twin.delete_adapter("default")
    assert torch.equal(logits(model), routed)


def test_state_dict_round_trip(base: Any, model: Any) -> None:
    other = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert torch.equal(logits(other), logits(model))
    third = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    third.load_state_dict(model.state_dict())
    assert torch.equal(logits(third), logits(model))


# Refused


def switch_to_two(model: Any) -> None:
    model.add_adapter("second", DrLLMConfig())
    model.base_model.set_adapter(["default", "second"])
    logits(model)


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Any], Any]]] = {
    "merge_and_unload": (DrLLMError, "cannot be merged", lambda model: model.merge_and_unload()),
    "merge_adapter": (DrLLMError, "cannot be merged", lambda model: model.merge_adapter()),
    "add_weighted_adapter": (DrLLMError, "weights", lambda model: model.add_weighted_adapter(["default"], [1], "w")),
    "adapter_names": (DrLLMError, "adapter_names", lambda model: model(IDS, adapter_names=["default"] * 4)),
    "adapter_names of generate": (
        DrLLMError,
        "adapter_names",
        lambda model: model.generate(IDS, adapter_names=["default"] * 4, max_new_tokens=2),
    ),
    "two active": (DrLLMError, "one router adapter can be active", switch_to_two),
    "modules_to_save": (DrLLMError, "put the routers on top", lambda _: DrLLMConfig(modules_to_save=["lm_head"])),
    "target_modules": (DrLLMError, "layers_to_transform", lambda _: DrLLMConfig(target_modules=["q_proj"])),
    "PeftMixedModel": (ValueError, "DRLLM", lambda _: get_peft_model(tiny_model("llama"), DrLLMConfig(), mixed=True)),
    "a second PeftModel": (DrLLMError, "load_adapter", lambda model: get_peft_model(model, DrLLMConfig())),
    "LoRA on top": (DrLLMError, "below the routers", lambda model: get_peft_model(model, LORA)),
    "hot-swapping": (ValueError, "DRLLM", lambda model: hotswap_adapter(model, "elsewhere", "default")),
    "conversion to LoRA": (TypeError, "LoRA conversion", lambda model: convert_to_lora(model, rank=2)),
    "unknown adapter": (ValueError, "other", lambda model: model.set_adapter("other")),
    "deleting an unknown adapter": (ValueError, "other", lambda model: model.delete_adapter("other")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    error, message, attempt = REFUSED[what]
    routed = logits(model)
    model.save_pretrained(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        attempt(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), routed)
    assert isinstance(model.peft_config["default"], DrLLMConfig)


# Inside transformers, without a PeftModel


@pytest.mark.transformers_adapters
@pytest.mark.filterwarnings("ignore:Adapter")
def test_transformers_integration(base: Any) -> None:
    model = copy.deepcopy(base)
    model.add_adapter(DrLLMConfig())
    teach(model)
    routed = logits(model)
    assert not torch.equal(routed, logits(base))
    model.disable_adapters()
    assert torch.equal(logits(model), logits(base))
    model.enable_adapters()
    assert torch.equal(logits(model), routed)
    model.add_adapter(DrLLMConfig(), "second")
    model.set_adapter("second")
    assert model.active_adapters() == ["second"]
    assert torch.equal(logits(model), logits(base))
    assert not model.get_adapter_state_dict("second")["model.layers.0.drllm_router.up.weight"].any()
    assert model.get_adapter_state_dict("default")["model.layers.0.drllm_router.up.weight"].any()
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits(model), routed)
    with pytest.raises(DrLLMError, match="below the routers"):
        model.add_adapter(LORA, "lora")
    with pytest.raises(ValueError, match="LoRA"):
        model.load_adapter("elsewhere", adapter_name="default", hotswap=True)
    assert torch.equal(logits(model), routed)
    model.delete_adapter("default")
    assert torch.equal(logits(model), logits(base))
    model.add_adapter(DrLLMConfig())
    teach(model)
    assert torch.equal(logits(model), routed)


TRANSFORMERS_CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "add_adapter": lambda model, _: model.add_adapter(DrLLMConfig(), "second"),
    "set_adapter": lambda model, _: model.set_adapter("default"),
    "active_adapters": lambda model, _: model.active_adapters(),
    "enable_adapters": lambda model, _: model.enable_adapters(),
    "disable_adapters": lambda model, _: model.disable_adapters(),
    "delete_adapter": lambda model, _: model.delete_adapter("default"),
    "get_adapter_state_dict": lambda model, _: model.get_adapter_state_dict(),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
}


@pytest.mark.skipif(Version(peft.__version__) >= Version(MIN_PEFT_VERSION), reason="transformers takes this peft")
@pytest.mark.parametrize("call", TRANSFORMERS_CALLS)
def test_what_transformers_itself_refuses_changes_nothing(call: str, model: Any, base: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "adapter")
    routed = logits(model)
    base.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(base), routed)
    with pytest.raises(ValueError, match=f"version of PEFT .* use a version >= {MIN_PEFT_VERSION}"):
        TRANSFORMERS_CALLS[call](base, tmp_path / "saved")
    assert torch.equal(logits(base), routed)
    assert not list(tmp_path.glob("saved/*.safetensors"))


# Ways of running it


@torch.no_grad()
def test_generation_strategies_agree_with_greedy(base: Any, model: Any) -> None:
    ids = IDS[:1]
    arguments = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": 60}
    greedy = model.generate(ids, **arguments)
    assert torch.equal(model.generate(ids, assistant_model=base, **arguments), greedy)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **arguments), greedy)
    assert torch.equal(model.generate(ids, cache_implementation="static", **arguments), greedy)
    assert torch.equal(base.generate(ids, assistant_model=model, **arguments), base.generate(ids, **arguments))


@torch.no_grad()
def test_inputs_embeds(model: Any) -> None:
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(IDS)).logits, logits(model))
