"""A call that fails, is interrupted or leaves something behind: the model, its configuration and its route stay."""

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_peft_method import IDS, logits
from test_saving_and_loading import teach
from tiny import tiny_model as any_tiny_model
from transformers import LogitsProcessor, StoppingCriteria
from unrolled import tiny_model

from drllm_adapter import DrLLMConfig, last_decisions
from drllm_adapter.adapter.layer import routed_layers


def routed(architecture: str = "llama", **config: Any) -> Any:
    model = get_peft_model(tiny_model(architecture), DrLLMConfig(**config)).eval()
    teach(model)
    return model


class Raises(LogitsProcessor, StoppingCriteria):  # type: ignore[misc]
    """Fails when it is called the `after`-th time: as a processor, a criterion, a streamer or a hook."""

    def __init__(self, error: type[BaseException], after: int) -> None:
        self.error, self.left = error, after

    def __call__(self, ids: Any, scores: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return scores

    def put(self, value: Any) -> None:
        self(value)

    def end(self) -> None:
        pass


def in_a_block(model: Any, failing: Raises) -> Any:
    handle = routed_layers(model)[3].base_layer.register_forward_hook(lambda *_: failing(None) and None)
    try:
        return model.generate(IDS, max_new_tokens=4, do_sample=False)
    finally:
        handle.remove()


def in_a_draft(model: Any, failing: Raises) -> Any:
    handle = routed_layers(model)[1].base_layer.register_forward_hook(lambda *_: failing(None) and None)
    try:
        return model.generate(IDS[:1], max_new_tokens=4, do_sample=False, assistant_early_exit=2)
    finally:
        handle.remove()


FAIL: dict[str, Callable[[Any, Raises], Any]] = {
    "processor": lambda model, failing: model.generate(IDS, max_new_tokens=4, logits_processor=[failing]),
    "streamer": lambda model, failing: model.generate(IDS[:1], max_new_tokens=4, streamer=failing),
    "block": in_a_block,
    "draft": in_a_draft,
    "no cache": lambda model, failing: model.generate(
        IDS, max_new_tokens=4, use_cache=False, logits_processor=[failing]
    ),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", FAIL)
@torch.no_grad()
def test_a_call_that_fails_leaves_everything_as_it_was(where: str, error: type[BaseException]) -> None:
    model = routed()
    twin = copy.deepcopy(model)
    # What PEFT leaves on a model that was used once is its own.
    FAIL[where](model, Raises(error, 100))
    with model.disable_adapter():
        logits(model)
    before = logits(model)
    route = routed_layers(model)[0].route
    decisions, settings = last_decisions(model), model.config.to_dict()
    modules = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    for after in (1, 2):
        with pytest.raises(error):
            FAIL[where](model, Raises(error, after))
        assert model.config.to_dict() == settings
        assert {name: (type(module), set(vars(module))) for name, module in model.named_modules()} == modules
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
        assert not route.call.decisions
        if where == "block" and after == 1:  # it failed at the prompt, so the last prompt is the one before
            assert torch.equal(last_decisions(model), decisions)
        with model.disable_adapter(), twin.disable_adapter():
            assert torch.equal(logits(model), logits(twin))
        assert torch.equal(logits(model), before)


# What a call leaves behind


def alive() -> int:
    """Bytes of all tensors that the test has made."""
    gc.collect()
    storages = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in gc.get_objects()
        if issubclass(type(item), torch.Tensor) and item.device.type == "cpu"
    }
    return sum(storages.values())


LEAVES: dict[str, Callable[[Any, Any], Any]] = {
    "forward": lambda model, ids: model(ids),
    "hidden states": lambda model, ids: model(ids, output_hidden_states=True),
    "without gradients": lambda model, ids: torch.no_grad()(model)(ids, output_hidden_states=True),
    "training": lambda model, ids: model.train()(ids, labels=ids).loss,
    "generation": lambda model, ids: model.generate(ids, max_new_tokens=3),
    "no cache": lambda model, ids: model.generate(ids, max_new_tokens=3, use_cache=False),
    "interrupted": lambda model, ids: interrupted(model, ids),
}


def interrupted(model: Any, ids: Any) -> None:
    handle = routed_layers(model)[-1].base_layer.register_forward_hook(lambda *_: Raises(KeyboardInterrupt, 1)(None))
    with pytest.raises(KeyboardInterrupt):
        model(ids, output_hidden_states=True)
    handle.remove()


@pytest.mark.parametrize("call", LEAVES)
@pytest.mark.parametrize("architecture", ["llama", "gptj", "falcon", "mamba"])
def test_nothing_big_is_kept_after_a_call(architecture: str, call: str) -> None:
    model = get_peft_model(any_tiny_model(architecture), DrLLMConfig(layers_to_transform=[0, 2])).eval()
    ids = torch.randint(2, 60, (4, 48))
    states = ids.numel() * 32 * 4  # what enters one block
    LEAVES[call](model, ids)  # what a model makes once
    before = alive()
    LEAVES[call](model, ids)
    assert alive() - before < states / 4
    routed_layers(model)[0].route.__init__(4)  # type: ignore[misc]
    assert before - alive() < states / 2


def test_early_exit_of_a_lora_below() -> None:
    lora = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    ask = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS[:1])}
    expected = lora.generate(IDS[:1], **ask)
    model = get_peft_model(lora, DrLLMConfig(), adapter_name="routers").eval()
    assert torch.equal(model.generate(IDS[:1], **ask, assistant_early_exit=2), expected)
