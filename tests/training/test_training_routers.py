"""Training the stack: same gradients as inside the model, same seed same weights, and it learns what can be learnt."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from stores import Numbers, learnable_store, random_labels, random_prompts, random_store, routed_model

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions
from drllm_adapter.adapter.layer import observe_router_inputs, routed_layers
from drllm_adapter.adapter.router import window_shares
from drllm_adapter.training import (
    FeatureStore,
    TrainingConfig,
    collect_features,
    focal_loss,
    load_weights_into,
    plot_curves,
    train_routers,
)
from drllm_adapter.training import objectives as objectives_module
from drllm_adapter.training.batches import BatchReader
from drllm_adapter.training.routers import fresh_weights, stacked_logits
from drllm_adapter.training.trainer import split_questions

SMALL = TrainingConfig(epochs=3)
CPU = torch.device("cpu")


def stacked(model: Any, layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Copies of the adapter's weights as a stack that takes gradients."""
    routers = [dict(routed_layers(model)[layer].drllm_router["default"].named_parameters()) for layer in layers]
    return {
        name.replace(".", "_"): torch.stack([router[name].detach() for router in routers]).requires_grad_()
        for name in routers[0]
    }


@pytest.mark.parametrize("routed", [None, [0, 3]])
def test_gradients_equal_those_of_training_inside_the_model(tmp_path: Path, routed: list[int] | None) -> None:
    model = routed_model(num_windows=4, router_width=16, layers_to_transform=routed)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "drllm_router" in name:
            parameter.data.normal_(std=0.3)
    prompts, labels = random_prompts(6), random_labels(6)
    prompts[1:3] = ["5", "6 7"]  # fewer tokens than windows
    store = collect_features(model, Numbers(), prompts, labels, tmp_path / "features", batch_size=6)
    assert sorted(store.windows)[:3] == [2, 3, 4]
    class_weights = [0.5, 0.7, 1.8]

    # Inside the model: its own routers run in the forward pass of the same batch, on the forced paths.
    blocks = routed_layers(model)
    logits: dict[int, torch.Tensor] = {}

    def run_router(block: int, means: torch.Tensor, used: torch.Tensor) -> None:
        if "default" in blocks[block].drllm_router:
            logits[block] = blocks[block].drllm_router["default"](means, window_shares(used, means.shape[1]))

    tokens = [torch.tensor(Numbers()(prompt)["input_ids"]) for prompt in prompts]
    with force_decisions(model, store.labels.tolist()), observe_router_inputs(model, run_router):
        model(
            input_ids=torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            attention_mask=torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
        )
    loss = torch.zeros(())
    for row in range(6):
        for layer in store.layers:
            label = int(store.labels[row, layer])
            p = logits[layer][row].softmax(-1)[label]
            loss = loss - class_weights[label] * (1 - p) ** 2 * p.log() / (6 * len(store.layers))
    loss.backward()

    weights = stacked(model, store.layers)
    batch = next(BatchReader(store, CPU, memory=0).batches([np.arange(6)]))
    outside = stacked_logits(weights, batch.means, batch.windows)
    inside = torch.stack([logits[layer] for layer in store.layers], dim=1)
    torch.testing.assert_close(outside, inside, rtol=1e-5, atol=1e-5)
    stacked_loss = focal_loss(outside, batch.labels, torch.tensor(class_weights))
    stacked_loss.backward()
    assert stacked_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for place, layer in enumerate(store.layers):
        for name, parameter in blocks[layer].drllm_router["default"].named_parameters():
            found = weights[name.replace(".", "_")].grad
            assert found is not None
            assert parameter.grad is not None
            largest = float(parameter.grad.abs().max())
            assert largest > 0
            # Entries that cancel to nearly nothing carry the rounding of the large ones.
            torch.testing.assert_close(found[place], parameter.grad, rtol=1e-5, atol=1e-5 * largest)
    assert all(p.grad is None for n, p in model.named_parameters() if "drllm_router" not in n)


def test_fresh_weights_are_xavier_uniform() -> None:
    weights = fresh_weights(3, 50, 20, torch.Generator().manual_seed(0))
    for name, fans in (("down_weight", 50 + 20), ("up_weight", 20 + 3)):
        limit = math.sqrt(6 / fans)
        assert float(weights[name].abs().max()) <= limit
        assert float(weights[name].std()) == pytest.approx(limit / math.sqrt(3), rel=0.1)
    assert not weights["down_bias"].any()
    assert not weights["up_bias"].any()
    assert not torch.equal(weights["down_weight"][0], weights["down_weight"][1])


def test_same_seed_same_weights() -> None:
    store = random_store()
    torch.manual_seed(1)
    first = train_routers(store, SMALL, router_width=8)
    torch.manual_seed(2)
    np.random.seed(2)
    # Read from disk batch by batch instead of held in memory.
    again = train_routers(store, SMALL, router_width=8, memory=0)
    other = train_routers(store, TrainingConfig(epochs=3, seed=1), router_width=8)
    for name, weight in first.weights.items():
        assert torch.equal(weight, again.weights[name])
        assert not torch.equal(weight, other.weights[name])
    assert first.history == again.history


def test_memory_mapped_and_in_memory_give_the_same_bits(tmp_path: Path) -> None:
    model = routed_model(num_windows=4)
    mapped = collect_features(model, Numbers(), random_prompts(40), random_labels(40), tmp_path / "features")
    copied = FeatureStore(np.array(mapped.means), mapped.windows, mapped.labels, mapped.ids, mapped.layers)
    results = [
        train_routers(mapped, SMALL, router_width=8, memory=0),
        train_routers(mapped, SMALL, router_width=8),
        train_routers(copied, SMALL, router_width=8),
    ]
    for result in results[1:]:
        assert all(torch.equal(weight, result.weights[name]) for name, weight in results[0].weights.items())


@pytest.mark.parametrize("rows", [[0], [3, 1, 2], [5, 5], list(range(7))])
def test_batches_hold_what_the_store_holds(rows: list[int]) -> None:
    store = random_store(7, 2, blocks=4)
    for memory in (0, 10**9):
        batch = next(BatchReader(store, CPU, memory).batches([np.array(rows)]))
        assert np.array_equal(batch.means.numpy(), store.means[rows].transpose(1, 0, 2, 3))
        assert batch.windows.tolist() == store.windows[rows].tolist()
        assert batch.labels.tolist() == store.labels[rows][:, 2:].tolist()


def test_learns_a_rule_that_no_static_path_follows() -> None:
    result = train_routers(learnable_store(), router_width=16)
    routers, static = result.metrics["routers"], result.metrics["static"]
    assert routers["macro_f1"] > 0.7
    assert routers["macro_f1"] > static["macro_f1"] + 0.4
    assert min(routers["skip_accuracy"], routers["repeat_accuracy"]) > 0.7
    assert routers["mean_passes"] == pytest.approx(result.metrics["label_mean_passes"], abs=0.3)
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]


@pytest.mark.parametrize("rare", [1, 4, 15])
def test_a_rare_class_does_not_spoil_the_others(rare: int) -> None:
    store = learnable_store()
    store.labels[store.labels == 2] = 1
    store.labels[:rare, 0] = 2
    result = train_routers(store, router_width=16)
    assert result.metrics["routers"]["f1_skip"] > 0.8
    assert result.metrics["routers"]["f1_execute"] > 0.8
    assert abs(result.metrics["routers"]["mean_passes"] - result.metrics["label_mean_passes"]) < 0.3


def test_noise_stops_early_and_the_best_epoch_is_kept() -> None:
    store = random_store(80)
    config = TrainingConfig(epochs=60, patience=3, learning_rate=0.01)
    result = train_routers(store, config, router_width=32)
    losses = [entry["validation_loss"] for entry in result.history]
    assert len(losses) == result.best_epoch + 3 < 60
    assert losses.index(min(losses)) == result.best_epoch - 1
    assert result.metrics["routers"] == result.history[result.best_epoch - 1]

    # The weights are those of the best epoch: they give its loss again.
    _, validation = split_questions(store.ids, config.validation_share, config.seed)
    batch = next(BatchReader(store, CPU, 0).batches([validation]))
    class_weights = torch.tensor(list(result.metrics["class_weights"].values()))
    loss = focal_loss(stacked_logits(result.weights, batch.means, batch.windows), batch.labels, class_weights)
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)


def test_without_patience_all_epochs_run() -> None:
    result = train_routers(random_store(), TrainingConfig(epochs=12, patience=None, learning_rate=0.05), router_width=8)
    assert len(result.history) == 12


def test_learning_rate_warms_up_and_falls_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def record(self: Any, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    result = train_routers(random_store(), TrainingConfig(epochs=5, batch_size=3, patience=None), router_width=4)
    assert result.metrics["steps_per_epoch"] == 18
    assert len(rates) == 90
    peak = rates.index(max(rates))
    assert peak == 9  # a tenth of the steps
    assert rates[peak] == pytest.approx(1e-3)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert result.history[-1]["learning_rate"] == pytest.approx(0, abs=1e-12)


def test_split_depends_on_ids_alone() -> None:
    ids = [f"q{number % 50}" for number in range(80)]
    train, validation = split_questions(ids, 0.1, seed=0)
    assert sorted([*train, *validation]) == list(range(80))
    held_out = {ids[row] for row in validation}
    assert len(held_out) == 5
    assert not held_out & {ids[row] for row in train}
    _, reversed_validation = split_questions(ids[::-1], 0.1, seed=0)
    assert {ids[::-1][row] for row in reversed_validation} == held_out
    assert {ids[row] for row in split_questions(ids, 0.1, seed=1)[1]} != held_out


def test_three_lines_and_json() -> None:
    import json

    text = io.StringIO()
    result = train_routers(random_store(), SMALL, router_width=8, console=Console(file=text, width=500))
    *printed, verdict = [line for line in text.getvalue().splitlines() if line]
    assert printed == list(result.lines)
    assert verdict.startswith("verdict   ")
    assert len(result.lines) == 3
    data, training, outcome = result.lines
    assert data.startswith("data      54 training and 6 validation questions, 3 routers; labels: ")
    assert training.startswith("training  3 epochs of 4 steps")
    assert outcome.startswith("result    macro F1 ")
    assert "passes on average" in outcome
    json.dumps([result.metrics, result.history], allow_nan=False)


def test_curves_are_a_picture(tmp_path: Path) -> None:
    from matplotlib import image

    store = random_store()
    store.labels[store.labels == 2] = 1  # values that are None leave gaps
    plot_curves(train_routers(store, SMALL, router_width=8), tmp_path / "curves.png")
    assert image.imread(tmp_path / "curves.png").shape[:2] == (510, 1650)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(("value", "name"), enumerate(("skip", "execute", "repeat")))
def test_one_class_only_is_refused(value: int, name: str) -> None:
    store = random_store()
    store.labels[:] = value
    with pytest.raises(DrLLMError, match=f"only {name} was found; search with more simulations") as refusal:
        train_routers(store, SMALL, router_width=8)
    assert str(refusal.value).count(". ") == 0


def test_one_class_among_the_training_questions_is_refused() -> None:
    store = random_store(40)
    train, validation = split_questions(store.ids, SMALL.validation_share, SMALL.seed)
    store.labels[train], store.labels[validation] = 1, 0
    with pytest.raises(DrLLMError, match="only execute was found"):
        train_routers(store, SMALL, router_width=8)


def test_one_question_only_is_refused() -> None:
    with pytest.raises(DrLLMError, match="at least two questions") as refusal:
        train_routers(random_store(1), SMALL, router_width=8)
    assert str(refusal.value).count(". ") == 0


@pytest.mark.parametrize("questions", [2, 3, 5])
def test_a_few_questions_are_enough_to_run(questions: int) -> None:
    result = train_routers(random_store(questions), router_width=4)
    assert all(torch.isfinite(weight).all() for weight in result.weights.values())
    assert result.metrics["validation_questions"] == 1
    assert result.metrics["train_questions"] == questions - 1
    assert all(math.isfinite(entry["validation_loss"]) for entry in result.history)


def test_weights_go_nowhere_while_the_adapter_is_disabled() -> None:
    model = routed_model(router_width=8)
    weights = fresh_weights(5, 32, 8, torch.Generator().manual_seed(0))
    with model.disable_adapter(), pytest.raises(DrLLMError, match="none is active; name one"):
        load_weights_into(model, weights, range(5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("memory", [0, 10**9])
def test_features_that_are_not_finite_are_refused(value: float, memory: int) -> None:
    store = random_store()
    store.means[17, 1, 0, 2] = value
    with pytest.raises(DrLLMError, match="those of question 'q17' hold NaN or infinite values"):
        train_routers(store, SMALL, router_width=8, memory=memory)


def test_a_loss_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives_module, "focal_loss", lambda logits, *_: logits.sum() * float("inf"))
    with pytest.raises(DrLLMError, match="lower the learning rate"):
        train_routers(random_store(), SMALL, router_width=8)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": 2.5},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"beta": 1.0},
        {"gamma": -1},
        {"patience": 0},
        {"validation_share": 1},
        {"seed": True},
        {"batch_size": "16"},
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DrLLMError, match=f"^{next(iter(change))} must be a"):
        TrainingConfig(**change)


@pytest.mark.parametrize("routed", [None, [1, 2, 4]])
def test_loaded_routers_decide_what_the_stack_decides(tmp_path: Path, routed: list[int] | None) -> None:
    model = routed_model(num_windows=4, router_width=8, layers_to_transform=routed)
    prompts, labels = random_prompts(40), random_labels(40)
    store = collect_features(model, Numbers(), prompts, labels, tmp_path / "labels")
    result = train_routers(store, TrainingConfig(epochs=10, learning_rate=0.01), router_width=8)
    load_weights_into(model, result.weights, result.layers)

    decided = []
    for prompt in prompts:
        with torch.no_grad():
            model(torch.tensor([Numbers()(prompt)["input_ids"]]))
        decided.append(last_decisions(model)[0].tolist())
    assert len({tuple(row) for row in decided}) > 3
    # On the path that the routers chose, the stack chooses the same.
    along = collect_features(model, Numbers(), prompts, np.array(decided), tmp_path / "decided", batch_size=1)
    batch = next(BatchReader(along, CPU, 0).batches([np.arange(40)]))
    chosen = stacked_logits(result.weights, batch.means, batch.windows).argmax(-1)
    assert chosen.tolist() == np.array(decided)[:, list(store.layers)].tolist()
    assert all(row[block] == 1 for row in decided for block in range(5) if block not in store.layers)


def test_trained_weights_survive_saving(tmp_path: Path) -> None:
    from peft import PeftModel
    from unrolled import tiny_model

    model = routed_model(router_width=8)
    weights = fresh_weights(5, 32, 8, torch.Generator().manual_seed(0))
    load_weights_into(model, weights, range(5))
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    assert torch.equal(stacked(loaded, tuple(range(5)))["down_weight"], weights["down_weight"])
    # Training a loaded adapter further: its old checksum no longer holds, and nobody complains.
    load_weights_into(loaded, {name: weight + 1 for name, weight in weights.items()}, range(5))
    with torch.no_grad():
        loaded(torch.tensor([[3, 4, 5]]))


def test_another_adapter_by_name() -> None:
    model = routed_model(router_width=8)
    model.add_adapter("second", DrLLMConfig(router_width=4, layers_to_transform=[2]))
    before = stacked(model, (2,))["down_weight"]
    weights = fresh_weights(1, 32, 4, torch.Generator().manual_seed(0))
    load_weights_into(model, weights, [2], "second")
    assert torch.equal(routed_layers(model)[2].drllm_router["second"].down.weight, weights["down_weight"][0])
    assert torch.equal(stacked(model, (2,))["down_weight"], before)


@pytest.mark.parametrize(
    ("routers", "layers", "router_width", "name", "message"),
    [
        (4, range(4), 8, None, r"must be for the blocks with a router in adapter 'default', \[0, 1, 2, 3, 4\]"),
        (5, [0, 1, 2, 3, 3], 8, None, "must be for the blocks with a router"),
        (5, range(5), 6, None, r"must have shape \[8, 32\], but the trained one has \[6, 32\]"),
        (5, range(5), 8, "third", "'third' is not one; name one of its adapters, default"),
        (4, range(5), 8, None, "down_weight of 5 routers, .* but those of 4 were given"),
        (6, range(5), 8, None, "down_weight of 5 routers, .* but those of 6 were given"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    routers: int, layers: Any, router_width: int, name: str | None, message: str
) -> None:
    model = routed_model(router_width=8)
    before = stacked(model, tuple(range(5)))
    weights = fresh_weights(routers, 32, router_width, torch.Generator().manual_seed(0))
    with pytest.raises(DrLLMError, match=message) as refusal:
        load_weights_into(model, weights, list(layers), name)
    assert str(refusal.value).count(". ") == 0
    assert all(torch.equal(value, before[key]) for key, value in stacked(model, tuple(range(5))).items())


def test_weights_say_how_much_an_example_counts() -> None:
    """Every question has two paths, the first of weight 3 and the second of weight 1: the routers say 3/4 and 1/4."""
    store = random_store(questions=400, routers=2, seed=3)
    store.means[:] = store.means[:1]
    store.windows[:] = store.windows[0]
    store.labels[0::2], store.labels[1::2] = 0, 1
    store = dataclasses.replace(store, ids=tuple(f"q{row // 2}" for row in range(400)))
    weights = np.tile(np.array([0.3, 0.1], dtype=np.float32), 200)
    result = train_routers(
        store, TrainingConfig(epochs=40, learning_rate=5e-3, patience=None), router_width=4, example_weights=weights
    )
    batch = next(BatchReader(store, CPU, memory=0).batches([np.arange(1)]))
    probabilities = stacked_logits(result.weights, batch.means, batch.windows).softmax(-1)
    assert probabilities[0, :, 0].tolist() == pytest.approx([0.75, 0.75], abs=0.06)
    assert probabilities[0, :, 2].max() < 0.05
    assert result.metrics["train_questions"] + result.metrics["validation_questions"] == 200
    assert result.metrics["label_mean_passes"] == pytest.approx(0.5)
    assert "along 400 paths" in result.lines[0]


@pytest.mark.parametrize("wrong", [np.ones(3), -np.ones(60), np.zeros(60), np.full(60, math.nan)])
def test_wrong_weights_are_refused(wrong: Any) -> None:
    with pytest.raises(DrLLMError, match="one number of at least 0 for each of 60 examples"):
        train_routers(random_store(60), SMALL, router_width=8, example_weights=wrong.astype(np.float32))
