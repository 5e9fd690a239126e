"""Configurations that are reused, edited or loaded without weights, loads that are refused, and calls from threads."""

import copy
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from test_peft_method import IDS, logits
from test_saving_and_loading import WEIGHTS, teach
from transformers import AutoModelForCausalLM
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, set_depth_control
from drllm_adapter.adapter.layer import routed_layers

pytestmark = pytest.mark.filterwarnings("ignore:(Already found|You are trying to modify|Adapter|Setting)")


def routed(config: DrLLMConfig | None = None, seed: int = 0) -> Any:
    model = get_peft_model(tiny_model("llama"), config or DrLLMConfig()).eval()
    teach(model, seed)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    routed().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    routed().save_pretrained(tmp_path / "damaged")
    weights = load_file(tmp_path / "damaged" / WEIGHTS)
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "damaged" / WEIGHTS)
    return tmp_path / "damaged"


# Configurations


def test_a_saved_configuration_serves_other_weights() -> None:
    """Saving notes a checksum in the configuration, which says nothing of the next adapter that is made with it."""
    config = DrLLMConfig()
    get_peft_model_state_dict(routed(config))
    model = get_peft_model(tiny_model("llama"), config).eval()
    set_peft_model_state_dict(model, get_peft_model_state_dict(routed(seed=1)))
    assert torch.equal(logits(model), logits(routed(seed=1)))


def test_a_loaded_configuration_serves_a_second_adapter(saved: Path, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(tiny_model("llama"), saved)
    model.add_adapter("reference", model.peft_config["default"])
    model.to("cpu").save_pretrained(tmp_path / "both")
    model.set_adapter("reference")
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_a_configuration_without_its_weights(saved: Path, tmp_path: Path) -> None:
    """It can be moved, copied and given weights in torch's own way; without any it is neither run nor saved."""
    model = get_peft_model(tiny_model("llama"), PeftConfig.from_pretrained(saved)).eval()
    model = copy.deepcopy(model.to("cpu"))
    with pytest.raises(DrLLMError, match="was not among them"):
        logits(model)
    with pytest.raises(DrLLMError, match="made from a saved adapter's configuration alone"):
        model.save_pretrained(tmp_path / "empty")
    assert not (tmp_path / "empty" / WEIGHTS).exists()
    model.load_state_dict(routed().state_dict())
    assert torch.equal(logits(model), logits(routed()))


def test_a_saved_configuration_can_be_varied(saved: Path) -> None:
    config = PeftConfig.from_pretrained(saved)
    assert DrLLMConfig(**{**config.to_dict(), "depth_control": 0.3}).depth_control == 0.3


@pytest.mark.parametrize("value", [0, 1, 0.25])
def test_settings_assigned_as_attributes_are_saved(value: float, tmp_path: Path) -> None:
    model = routed()
    model.peft_config["default"].depth_control = value
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    assert loaded.peft_config["default"].depth_control == value
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(("name", "value"), [("depth_control", 3), ("layer_budget", "all"), ("num_windows", 0)])
def test_attributes_are_checked_where_they_are_used(name: str, value: Any, tmp_path: Path) -> None:
    model, config = routed(), DrLLMConfig()
    setattr(model.peft_config["default"], name, value)
    with pytest.raises(DrLLMError, match=f"{name} must be"):
        model.peft_config["default"].save_pretrained(tmp_path)
    setattr(config, name, value)
    with pytest.raises(DrLLMError, match=f"{name} must be"):
        get_peft_model(tiny_model("llama"), config)
    config = DrLLMConfig()
    config.modules_to_save = ["lm_head"]  # type: ignore[attr-defined]
    with pytest.raises(DrLLMError, match="has no modules_to_save"):
        get_peft_model(tiny_model("llama"), config)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM"])
def test_tasks_with_a_head_to_train_are_refused(task: str) -> None:
    with pytest.raises(DrLLMError, match="language-model head"):
        DrLLMConfig(task_type=task)


def test_a_bare_decoder() -> None:
    base = tiny_model("llama").model
    expected = base(IDS).last_hidden_state
    model = get_peft_model(base, DrLLMConfig(task_type="FEATURE_EXTRACTION")).eval()
    assert torch.equal(model(IDS).last_hidden_state, expected)
    set_depth_control(model, 1)
    assert not torch.equal(model(IDS).last_hidden_state, expected)


# Attaching


@pytest.mark.parametrize("attach", [get_peft_model, lambda model, config: inject_adapter_in_model(config, model)])
@pytest.mark.parametrize("training", [False, True])
def test_blocks_stay_in_the_mode_of_the_base(attach: Callable[..., Any], training: bool) -> None:
    model = attach(tiny_model("llama").train(training), DrLLMConfig())
    assert {layer.training for layer in routed_layers(model)} == {training}


def test_half_precision_weights_become_float32() -> None:
    weights = {name: value.half() for name, value in get_peft_model_state_dict(routed()).items()}
    model = inject_adapter_in_model(DrLLMConfig(), tiny_model("llama")).eval()
    set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True)
    assert {value.dtype for name, value in model.named_parameters() if "drllm_router" in name} == {torch.float32}
    logits(model)


def test_a_resized_vocabulary_stays_with_the_base(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(VOCABULARY + 4)
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    teach(model)
    with pytest.warns(UserWarning, match="embeddings are not saved with a router adapter"):
        model.save_pretrained(tmp_path / "adapter")
    assert all("drllm_router" in name for name in load_file(tmp_path / "adapter" / WEIGHTS))
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), logits(model))


# Loads


def test_a_refused_load_leaves_a_healthy_model(damaged: Path, saved: Path, tmp_path: Path) -> None:
    model = routed(seed=1)
    before = logits(model)
    with pytest.raises(DrLLMError, match="checksum"):
        model.load_adapter(damaged, "next")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), before)
    model.to("cpu").save_pretrained(tmp_path / "again")
    model.load_adapter(saved, "next")
    model.set_adapter("next")
    assert torch.equal(logits(model), logits(routed()))


def test_a_base_that_refused_an_adapter_is_the_base(damaged: Path, saved: Path) -> None:
    base = tiny_model("llama")
    before = logits(base)
    with pytest.raises(DrLLMError, match="checksum"):
        PeftModel.from_pretrained(base, damaged)
    assert torch.equal(logits(base), before)
    assert torch.equal(logits(PeftModel.from_pretrained(base, saved)), logits(routed()))


@pytest.mark.transformers_adapters
def test_a_load_that_never_came_is_not_expected_of_another_adapter(saved: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    config = PeftConfig.from_pretrained(saved)
    config.inference_mode = False
    model.add_adapter(config, "mine")
    other = routed(DrLLMConfig(router_width=5))
    weights = get_peft_model_state_dict(other)
    model.load_adapter(peft_config=DrLLMConfig(router_width=5), adapter_state_dict=weights, adapter_name="other")
    assert list(model.peft_config) == ["mine", "other"]
    model.set_adapter("other")
    assert torch.equal(logits(model), logits(other))

    get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    base = get_peft_model(tiny_model("llama"), PeftConfig.from_pretrained(saved)).unload()
    base.load_adapter(tmp_path / "lora")
    assert list(base.peft_config) == ["default"]


def test_a_deleted_adapter_leaves_no_checksum_behind(saved: Path) -> None:
    model = routed()
    model.add_adapter("next", PeftConfig.from_pretrained(saved))
    model.delete_adapter("next")
    model.add_adapter("next", DrLLMConfig(inference_mode=True))
    model.set_adapter("next")
    assert torch.equal(logits(model), logits(tiny_model("llama")))


# Another adapter below


def lora(**options: Any) -> Any:
    torch.manual_seed(4)
    return get_peft_model(tiny_model("llama"), LoraConfig(init_lora_weights=False, **options)).eval()


def test_the_lora_below_loads_as_if_there_were_no_routers(tmp_path: Path) -> None:
    expected = lora(target_modules=["q_proj"])
    expected.save_pretrained(tmp_path)
    below = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    get_peft_model(below, DrLLMConfig(), adapter_name="routers").eval()
    below.load_adapter(tmp_path, "default")
    assert torch.equal(logits(below), logits(expected))


def test_a_lora_outside_the_blocks_is_saved_without_routers(tmp_path: Path) -> None:
    below = lora(target_modules=["lm_head"])
    get_peft_model(below, DrLLMConfig(), adapter_name="routers")
    below.save_pretrained(tmp_path)
    assert not any("drllm" in name for name in load_file(tmp_path / WEIGHTS))


def test_saving_routers_alone_while_the_lora_trains_is_said(tmp_path: Path) -> None:
    model = get_peft_model(lora(target_modules=["q_proj"]), DrLLMConfig(), adapter_name="routers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Could not find")
        model.get_base_model().requires_grad_(False)
        model.save_pretrained(tmp_path)
    model.get_base_model().set_requires_grad("default")
    with pytest.warns(UserWarning, match="without the LORA adapter below them"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3]), "trainable_token_indices"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "prefix tuning"),
    ],
)
def test_what_cannot_lie_below_is_refused_when_attaching(config: PeftConfig, problem: str) -> None:
    below = get_peft_model(tiny_model("llama"), config)
    with pytest.raises(DrLLMError, match=problem):
        get_peft_model(below, DrLLMConfig(), adapter_name="routers")


# Threads


def test_two_threads_at_once_are_right_or_refused() -> None:
    model = routed()
    prompts = [IDS[:2], IDS[2:]]
    arguments = {"max_new_tokens": 5, "do_sample": False}
    expected = [model.generate(ids, **arguments) for ids in prompts]
    outcomes: list[Any] = []

    def call(ids: torch.Tensor, wanted: torch.Tensor) -> None:
        try:
            outcomes.append(torch.equal(model.generate(ids, **arguments), wanted))
        except DrLLMError as error:
            outcomes.append("one call at a time" in str(error))

    for _ in range(10):
        threads = [threading.Thread(target=call, args=pair) for pair in zip(prompts, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == [True] * 20
    assert torch.equal(model.generate(prompts[0], **arguments), expected[0])  # and nothing is left behind


@pytest.mark.parametrize("gradients", [False, True])
def test_a_call_is_refused_where_another_thread_began_one(gradients: bool) -> None:
    """The second call begins, to its end, while the first one is inside a block."""
    model = routed()
    block = routed_layers(model)[1].base_layer
    other = threading.Thread(target=model, args=(IDS,))

    def begin(*args: Any) -> None:
        if not other.ident:
            other.start()
            other.join()

    block.register_forward_hook(begin)
    set_depth_control(model, 0.5)
    with torch.set_grad_enabled(gradients):
        with pytest.raises(DrLLMError, match="one call at a time"):
            model(IDS)
        model(IDS)


def test_data_parallel_is_refused() -> None:
    with pytest.raises(DrLLMError, match=r"nn\.DataParallel"):
        routed_layers(routed())[0]._replicate_for_data_parallel()
