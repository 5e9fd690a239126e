"""Routers that learn from the language-model loss itself: straight-through gradients, inside every usual training."""

import copy
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from test_peft_method import IDS, logits
from test_saving_and_loading import WEIGHTS, teach
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments
from unrolled import SIZES, VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, force_decisions, last_decisions
from drllm_adapter.adapter.layer import RoutedLayer, routed_layers


@pytest.fixture
def base() -> Any:
    return tiny_model("llama")


def taught(base: Any, **config: Any) -> Any:
    model = get_peft_model(copy.deepcopy(base), DrLLMConfig(**config)).train()
    teach(model)
    return model


def gradients(model: Any, **batch: Any) -> dict[str, torch.Tensor]:
    """Of every router weight, for the sum of the losses of all scored tokens."""
    model.zero_grad()
    scored = int((batch["labels"][:, 1:] != -100).sum())
    (model(**batch).loss * scored).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("model_type", SIZES)
def test_every_router_has_a_gradient(model_type: str) -> None:
    """From the first step, in which all blocks execute; the first layer follows once the second is not zero."""
    model = get_peft_model(tiny_model(model_type), DrLLMConfig()).train()
    found = gradients(model, input_ids=IDS, labels=IDS)
    assert len(found) == 20
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all()
        assert gradient.any() == (".up." in name)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".up.weight" in name:
                weight.normal_(std=0.1)
    assert all(gradient.any() for gradient in gradients(model, input_ids=IDS, labels=IDS).values())


@pytest.mark.parametrize("model_type", SIZES)
def test_training_mode_computes_the_same(model_type: str) -> None:
    model = taught(tiny_model(model_type))
    if model_type == "gpt2":
        model.get_base_model().eval()  # its dropout
        for layer in model.get_base_model().transformer.h:
            layer.training = True
    trained = model(IDS).logits
    assert trained.requires_grad
    torch.testing.assert_close(trained, logits(model.eval()))


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
    probabilities = router(windows, torch.full((4, 6), 1 / 6)).softmax(-1)
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


@pytest.mark.parametrize("left", [True, False])
def test_padding_and_batch_mates_add_nothing(left: bool, base: Any) -> None:
    model = taught(base)
    rows = [[5, 9, 3, 7, 7, 2, 8, 1], [8, 1, 6, 4]]
    answers = [[-100] * 4 + rows[0][4:], [-100] * 2 + rows[1][2:]]
    expected: dict[str, torch.Tensor] = {}
    for row, answer in zip(rows, answers, strict=True):
        alone = gradients(model, input_ids=torch.tensor([row]), labels=torch.tensor([answer]))
        expected = {name: gradient + expected.get(name, 0) for name, gradient in alone.items()}

    def pad(values: list[int], fill: int) -> list[int]:
        padding = [fill] * (8 - len(values))
        return padding + values if left else values + padding

    mask = torch.tensor([pad([1] * len(row), 0) for row in rows])
    together = gradients(
        model,
        input_ids=torch.tensor([pad(row, 0) for row in rows]),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        labels=torch.tensor([pad(answer, -100) for answer in answers]),
    )
    assert_close(together, expected)


def test_running_in_between_changes_nothing(base: Any) -> None:
    """An evaluation or a generation between two steps leaves no trace in the next gradient."""
    model = taught(base)
    expected = gradients(model, input_ids=IDS, labels=IDS)
    model.eval()
    with force_decisions(model, [0, 1, 2, 1, 0]):
        logits(model)
    model.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), max_new_tokens=3, use_cache=False)
    assert not model(IDS).logits.requires_grad  # routed as in use: decisions are hard
    assert_close(gradients(model.train(), input_ids=IDS, labels=IDS), expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_changes_nothing(model_type: str, reentrant: bool) -> None:
    model = taught(tiny_model(model_type, **({} if model_type == "llama" else NO_DROPOUT)), depth_penalty=0.5)
    expected = gradients(model, input_ids=IDS, labels=IDS)
    runs: list[int] = []
    model.get_base_model().get_submodule(LAST_MLP[model_type]).register_forward_pre_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_close(gradients(model, input_ids=IDS, labels=IDS), expected)
    assert len(runs) == 4  # both passes, and both again for the backward pass


def around_by_call(model: Any, reentrant: bool) -> None:
    """As a forward loop that checkpoints its blocks itself."""
    for layer in routed_layers(model):

        def forward(hidden: Any, run: Any = layer.forward, **named: Any) -> Any:
            return checkpoint(lambda states: run(states, **named), hidden, use_reentrant=reentrant)

        layer.forward = forward  # type: ignore[method-assign]


def around_by_wrapper(model: Any, reentrant: bool) -> None:
    """As FSDP's activation checkpointing."""
    kind = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    wrap = partial(checkpoint_wrapper, checkpoint_impl=kind)
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=wrap, check_fn=lambda module: isinstance(module, RoutedLayer)
    )


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("around", [around_by_call, around_by_wrapper])
def test_checkpointing_around_routed_blocks_keeps_to_the_budget(around: Any, reentrant: bool, base: Any) -> None:
    """What runs again for the backward pass takes neither other decisions nor passes of the budget."""
    model = taught(base, depth_penalty=0.5, layer_budget=4)
    expected = gradients(model, input_ids=IDS, labels=IDS)
    decisions = last_decisions(model)
    assert decisions.sum(dim=1).max() <= 4
    assert not (decisions == decisions[0]).all()
    model.enable_input_require_grads()
    around(model, reentrant)
    runs: list[int] = []
    model.get_base_model().model.layers[4].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    for _ in range(2):
        found = gradients(model, input_ids=IDS, labels=IDS)
        assert_close(
            {name.replace("_checkpoint_wrapped_module.", ""): value for name, value in found.items()}, expected
        )
        assert torch.equal(last_decisions(model), decisions)
    assert len(runs) == 8  # twice both passes, and both again for the backward pass
    with torch.no_grad():  # nothing is left of it for other calls
        model.eval()(IDS)
    assert torch.equal(last_decisions(model), decisions)


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LAST_MLP = {"llama": "model.layers.4.mlp", "gpt2": "transformer.h.4.mlp"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases(dtype: torch.dtype, base: Any) -> None:
    full = gradients(taught(base), input_ids=IDS, labels=IDS)
    half = gradients(taught(copy.deepcopy(base).to(dtype)), input_ids=IDS, labels=IDS)
    assert all(gradient.dtype == torch.float32 for gradient in half.values())
    flat = [torch.cat([gradient.flatten() for gradient in found.values()]) for found in (full, half)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.98


def test_autocast(base: Any) -> None:
    model = taught(base)
    full = gradients(model, input_ids=IDS, labels=IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gradients(model, input_ids=IDS, labels=IDS)
        trained = model(IDS).logits
        assert torch.equal(logits(model.eval()), trained)
    assert all(gradient.dtype == torch.float32 for gradient in half.values())
    flat = [torch.cat([gradient.flatten() for gradient in found.values()]) for found in (full, half)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.98


# Trainer and accelerate


EXAMPLES = [
    {"input_ids": row, "labels": [-100] * 5 + row[5:]}
    for row in torch.randint(1, VOCABULARY, (24, 9), generator=torch.Generator().manual_seed(2)).tolist()
]


def trainer(model: Any, folder: Path, **changes: Any) -> Trainer:
    arguments = {
        "output_dir": str(folder), "max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 4,
        "save_steps": 2, "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True, "seed": 1,
    }  # fmt: skip
    return Trainer(
        model=model,
        args=TrainingArguments(**{**arguments, **changes}),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:8],
    )


def test_a_killed_training_resumes_to_the_same_routers(base: Any, tmp_path: Path) -> None:
    whole, start = taught(base), get_peft_model_state_dict(taught(base))
    trainer(whole, tmp_path).train()
    assert any(not torch.equal(start[name], weight) for name, weight in get_peft_model_state_dict(whole).items())
    resumed = taught(base)
    teach(resumed, seed=5)
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_close(get_peft_model_state_dict(resumed), get_peft_model_state_dict(whole), 0)


def test_the_best_checkpoint_comes_back(base: Any, tmp_path: Path) -> None:
    model = taught(base)
    run = trainer(model, tmp_path, learning_rate=3.0, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
    run.train()
    best = Path(run.state.best_model_checkpoint)
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert best == tmp_path / f"checkpoint-{2 * (losses.index(min(losses)) + 1)}"
    assert_close(get_peft_model_state_dict(model), load_file(best / WEIGHTS), 0)


def test_bfloat16_training_with_accumulation_and_checkpointing(base: Any, tmp_path: Path) -> None:
    model = taught(base)
    before = get_peft_model_state_dict(model)
    before = {name: weight.clone() for name, weight in before.items()}
    options = {"bf16": True, "gradient_accumulation_steps": 2, "gradient_checkpointing": True, "save_strategy": "no"}
    trainer(model, tmp_path, **options).train()
    after = get_peft_model_state_dict(model)
    assert all(weight.dtype == torch.float32 and torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_trainer_teaches_the_routers(base: Any, tmp_path: Path) -> None:
    """The target is what the base says when it skips block 1 and repeats block 3: routers find that path."""
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


TWO_PROCESSES = """
import sys
sys.path[:0] = sys.argv[2:]
import torch
from accelerate import Accelerator
from test_gradients import IDS, taught, tiny_model

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model = accelerator.prepare(taught(tiny_model("llama")))
mine = IDS[accelerator.process_index :: 2]
accelerator.backward(model(input_ids=mine, labels=mine).loss)
weights = accelerator.unwrap_model(model).named_parameters()
accelerator.save({name: weight.grad for name, weight in weights if weight.requires_grad}, sys.argv[1])
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def test_two_processes_average_their_gradients(base: Any, tmp_path: Path) -> None:
    model = taught(base)
    model(input_ids=IDS, labels=IDS).loss.backward()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "gradients.pt"), *paths]
    workers = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=240)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], errors
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert_close(torch.load(tmp_path / "gradients.pt"), expected)
