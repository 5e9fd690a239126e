"""What PEFT's users know from LoRA works here, or is refused by name with the way around."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from test_saving_and_loading import teach
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions, set_depth_control

IDS = torch.randint(1, VOCABULARY, (4, 11), generator=torch.Generator().manual_seed(2))


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


def test_only_routers_train(model: Any) -> None:
    assert all(("drllm_router" in name) == weight.requires_grad for name, weight in model.named_parameters())
    trainable, total = model.get_nb_trainable_parameters()
    assert trainable == 5 * (32 * 128 + 128 + 3 * 128 + 3)
    assert total == sum(weight.numel() for weight in model.parameters())


def test_several_adapters_one_active(base: Any, model: Any) -> None:
    routed = logits(model)
    model.add_adapter("second", DrLLMConfig(router_width=16, layers_to_transform=[1, 2]))
    assert torch.equal(logits(model), routed)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(base))
    active = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert active
    assert all(".second." in name for name in active)
    model.set_adapter("default")
    assert torch.equal(logits(model), routed)
    model.delete_adapter("second")
    assert torch.equal(logits(model), routed)
    assert not any("second" in name for name in model.state_dict())


def test_disabling_nests_and_survives_errors(base: Any, model: Any) -> None:
    routed = logits(model)
    with model.disable_adapter(), model.disable_adapter():
        assert torch.equal(logits(model), logits(base))
    assert torch.equal(logits(model), routed)
    with pytest.raises(KeyError), model.disable_adapter():
        raise KeyError
    assert torch.equal(logits(model), routed)


def test_unload_gives_the_base_back(base: Any, model: Any) -> None:
    plain = model.unload()
    assert type(plain) is type(base)
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(logits(plain), logits(base))
    assert "prepare_inputs_for_generation" not in vars(plain)
    assert not any(module._forward_pre_hooks for module in plain.modules())
    again = get_peft_model(plain, DrLLMConfig()).eval()
    assert torch.equal(logits(again), logits(base))


def test_merging_is_refused(model: Any) -> None:
    routed = logits(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(DrLLMError, match="cannot be merged"):
            merge()
    assert torch.equal(logits(model), routed)


def test_adapter_names_are_refused(model: Any) -> None:
    with pytest.raises(DrLLMError, match="adapter_names"):
        model(IDS, adapter_names=["default"] * 4)
    with pytest.raises(DrLLMError, match="adapter_names"):
        model.generate(IDS, adapter_names=["default"] * 4, max_new_tokens=2)


def test_copies_and_pickles_are_independent(model: Any) -> None:
    routed = logits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), routed)
        set_depth_control(twin, -1)
        with force_decisions(twin, [2] * 5):
            assert torch.equal(logits(model), routed)
        assert last_decisions(model).tolist() != [[2] * 5] * 4


def test_state_dict_round_trip(base: Any, model: Any) -> None:
    weights = get_peft_model_state_dict(model)
    assert all(".default." not in name for name in weights)
    other = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    set_peft_model_state_dict(other, weights)
    assert torch.equal(logits(other), logits(model))


def test_status(model: Any) -> None:
    status = model.get_model_status()
    assert (status.adapter_model_type, status.num_adapter_layers, status.enabled) == ("DrLLMModel", 5, True)
    assert [layer.module_type for layer in model.get_layer_status()] == ["RoutedLayer"] * 5


def test_selected_adapters_and_trainable_loading(base: Any, model: Any, tmp_path: Path) -> None:
    model.add_adapter("second", DrLLMConfig(router_width=16))
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    assert not (tmp_path / "second").exists()
    frozen = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert not any(weight.requires_grad for weight in frozen.parameters())
    trainable = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    assert sum(weight.requires_grad for weight in trainable.parameters()) == 20
    assert torch.equal(logits(trainable.eval()), logits(model))


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
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits(model), routed)


@torch.no_grad()
def test_routers_on_top_of_lora(base: Any) -> None:
    """LoRA first, then the routers around its blocks: forced paths run the blocks with LoRA in them."""
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    expected = logits(lora)
    both = get_peft_model(lora, DrLLMConfig()).eval()
    assert torch.equal(logits(both), expected)
    with force_decisions(both, [1, 0, 2, 1, 1]):
        routed = logits(both)
    merged = lora_of_routed(base, both)
    with force_decisions(merged, [1, 0, 2, 1, 1]):
        torch.testing.assert_close(routed, logits(merged), rtol=1e-4, atol=1e-4)


def lora_of_routed(base: Any, both: Any) -> Any:
    """The base with LoRA's update added to its weights by hand, and fresh routers."""
    plain = copy.deepcopy(base)
    for name, module in both.named_modules():
        if hasattr(module, "lora_A"):
            block = int(name.split(".layers.")[1].split(".")[0])
            plain.model.layers[block].self_attn.q_proj.weight += module.get_delta_weight("default")
    return get_peft_model(plain, DrLLMConfig()).eval()


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


# Training through the model's own loss


def test_training_mode_computes_the_same(model: Any) -> None:
    routed = logits(model)
    model.train()
    torch.testing.assert_close(model(IDS).logits, routed)


def test_gradients_are_those_of_the_mixture(base: Any) -> None:
    """Straight-through: the gradient of each router equals that of replacing its decision by its probabilities."""
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig(layers_to_transform=[2])).train()
    teach(model)
    labels = IDS.clone()
    labels[:, :6] = -100
    model(IDS, labels=labels).loss.backward()
    router = next(module for name, module in model.named_modules() if name.endswith("drllm_router.default"))
    decisions = last_decisions(model)[:, 2]

    states, embed = base.get_input_embeddings()(IDS), base.model.rotary_emb
    position = embed(states, torch.arange(IDS.shape[1])[None])

    def run(block: int, hidden: torch.Tensor) -> torch.Tensor:
        return base.model.layers[block](hidden, position_embeddings=position, attention_mask=None)

    hidden = run(1, run(0, states))
    windows = torch.stack([torch.stack([part.mean(0) for part in torch.tensor_split(row[:6], 6)]) for row in hidden])
    probabilities = router(windows, torch.full((4,), 6)).softmax(-1)
    once = run(2, hidden)
    outcomes = torch.stack([hidden, once, run(2, once)], dim=1)
    hard = torch.nn.functional.one_hot(decisions.long(), 3).float()
    mixed = torch.einsum("bk,bktd->btd", hard + probabilities - probabilities.detach(), outcomes)
    out = base.lm_head(base.model.norm(run(4, run(3, mixed))))
    loss = torch.nn.functional.cross_entropy(out[:, 5:-1].flatten(0, 1), IDS[:, 6:].flatten())
    expected = torch.autograd.grad(loss, list(router.parameters()))
    for parameter, gradient in zip(router.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_depth_penalty_joins_the_loss(base: Any) -> None:
    gradients = []
    for penalty in (0.0, 3.0):
        model = get_peft_model(copy.deepcopy(base), DrLLMConfig(depth_penalty=penalty)).train()
        model(IDS, labels=IDS).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if "up.bias" in name})
    for block in range(5):
        name = next(name for name in gradients[0] if f"layers.{block}." in name)
        added = gradients[1][name] - gradients[0][name]
        # Descending it makes skipping likelier and repeating less likely.
        assert added[0] < 0 < added[2]


def test_gradient_checkpointing_changes_nothing(base: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(copy.deepcopy(base), DrLLMConfig()).train()
        teach(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS).loss.backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_a_trainer_teaches_the_routers(base: Any, tmp_path: Path) -> None:
    """The target is what the base says when it skips block 1 and repeats block 3: routers find that path."""
    from transformers import Trainer, TrainingArguments

    path = [1, 0, 1, 2, 1]
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig(layers_to_transform=[1, 3])).train()
    prompts = torch.randint(1, VOCABULARY, (64, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), force_decisions(model.eval(), path):
        answers = model(prompts).logits[:, -1].argmax(-1)
    examples = [
        {"input_ids": [*prompt, answer], "labels": [*[-100] * 10, answer]}
        for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=60, learning_rate=1e-2, per_device_train_batch_size=16, report_to=[],
        save_strategy="no", disable_tqdm=True, logging_strategy="no", use_cpu=True, seed=1,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=examples).train()
    with torch.no_grad():
        right = (model.eval()(prompts).logits[:, -1].argmax(-1) == answers).float().mean()
    decisions = last_decisions(model).float()
    assert right > 0.9
    assert (decisions[:, 1] == 0).float().mean() > 0.9
    assert (decisions[:, 3] == 2).float().mean() > 0.9
