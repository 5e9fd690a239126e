"""Features: what the routers read, against hidden states of the unrolled model; storage; refusals."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from stores import Numbers, as_tensors, random_labels, random_prompts, routed_model, word_tokenizer
from unrolled import tiny_model, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError
from drllm_adapter.jobs import Shards
from drllm_adapter.training import FeatureStore, collect_features
from drllm_adapter.training import features as features_module
from drllm_adapter.training.features import FeatureWriter

N = 12


def collect(
    model: Any, folder: Path, labels: Any = None, prompts: list[str] | None = None, **more: Any
) -> FeatureStore:
    prompts = random_prompts(N) if prompts is None else prompts
    labels = random_labels(len(prompts)) if labels is None else labels
    return collect_features(model, Numbers(), prompts, labels, folder, **{"batch_size": 5, **more})


@torch.no_grad()
def entering_states(tokens: list[int], decisions: list[int]) -> list[torch.Tensor]:
    """What enters each block, `[tokens, width]`, read off the unrolled model; a skipped block reads what it passes."""
    model = unrolled(tiny_model("llama"), decisions)
    states = [model.get_input_embeddings()(torch.tensor(tokens))]
    for block in model.model.layers:
        block.register_forward_hook(lambda _module, _args, output: states.append(output[0]))
    if sum(decisions):
        model(as_tensors(tokens), use_cache=False)
    return [states[sum(decisions[:block])] for block in range(len(decisions))]


@pytest.mark.parametrize("routed", [None, [1, 3]])
def test_features_equal_those_of_the_unrolled_model(tmp_path: Path, routed: list[int] | None) -> None:
    model = routed_model(num_windows=4, layers_to_transform=routed)
    labels, prompts = random_labels(N), random_prompts(N)
    labels[0] = 0  # the empty path
    store = collect(
        model, tmp_path / "features", labels, prompts, add_special_tokens=[row % 2 == 0 for row in range(N)]
    )
    assert store.layers == tuple(routed or range(5))
    assert store.means.dtype == np.float32
    assert store.means.shape == (N, len(store.layers), 4, 32)
    for row, prompt in enumerate(prompts):
        tokens = Numbers()(prompt, add_special_tokens=row % 2 == 0)["input_ids"]
        # Blocks without a router execute, here as when the adapter is used.
        path = [int(label) if block in store.layers else 1 for block, label in enumerate(labels[row])]
        assert store.labels[row].tolist() == path
        used = min(4, len(tokens))
        assert store.windows[row] == used
        window_of = [token * used // len(tokens) for token in range(len(tokens))]
        states = entering_states(tokens, path)
        for place, block in enumerate(store.layers):
            for window in range(4):
                members = [states[block][token] for token, number in enumerate(window_of) if number == window]
                expected = torch.stack(members).mean(0) if members else torch.zeros(32)
                torch.testing.assert_close(
                    torch.from_numpy(store.means[row, place, window].copy()), expected, rtol=1e-3, atol=1e-4
                )


@pytest.mark.parametrize(("pad_token", "side"), [(None, "right"), ("<pad>", "left"), ("<s>", "right")])
def test_the_tokenizer_and_its_padding_do_not_matter(tmp_path: Path, pad_token: str | None, side: str) -> None:
    model, prompts, labels = routed_model(), random_prompts(N), random_labels(N)
    special = [row % 2 == 0 for row in range(N)]
    expected = collect(model, tmp_path / "expected", labels, prompts, add_special_tokens=special)
    tokenizer = word_tokenizer(pad_token=pad_token, padding_side=side)
    store = collect_features(
        model, tokenizer, prompts, labels, tmp_path / "words", batch_size=5, add_special_tokens=special
    )
    assert np.array_equal(store.means, expected.means)
    assert store.windows.tolist() == expected.windows.tolist()


@pytest.mark.parametrize("model_type", ["gpt2", "mistral", "qwen2", "qwen3"])
def test_batches_do_not_matter_in_any_architecture(tmp_path: Path, model_type: str) -> None:
    model = get_peft_model(tiny_model(model_type), DrLLMConfig(num_windows=3)).eval()
    one, many = collect(model, tmp_path / "1", batch_size=1), collect(model, tmp_path / "12", batch_size=N)
    np.testing.assert_allclose(one.means, many.means, rtol=1e-3, atol=1e-4)


def test_batches_do_not_matter(tmp_path: Path) -> None:
    model = routed_model()
    one, many = collect(model, tmp_path / "1", batch_size=1), collect(model, tmp_path / "5", batch_size=5)
    np.testing.assert_allclose(one.means, many.means, rtol=1e-3, atol=1e-4)
    assert one.windows.tolist() == many.windows.tolist()


def test_the_number_of_shards_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folder is listed once a shard: with one a batch, twice the questions took four times as long."""
    model = routed_model()
    written: list[int] = []
    monkeypatch.setattr(Shards, "write", lambda self, number, content, write=Shards.write: (
        written.append(number), write(self, number, content))[1])  # fmt: skip
    plain = collect(model, tmp_path / "plain", batch_size=1)
    assert written == list(range(N))
    monkeypatch.setattr("drllm_adapter.training.collect._MOST_PIECES", 5)
    written.clear()
    bounded = collect(model, tmp_path / "bounded", batch_size=1)
    assert written == [0, 1, 2, 3]  # of three batches each
    assert np.array_equal(plain.means, bounded.means)
    assert np.array_equal(plain.windows, bounded.windows)


def test_stored_on_disk_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = routed_model()
    first = collect(model, tmp_path / "features")
    assert isinstance(first.means, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "write", lambda *_: pytest.fail("collected again"))
        again = collect(model, tmp_path / "features", batch_size=3)
    assert np.array_equal(first.means, again.means)
    assert (first.ids, first.key) == (again.ids, again.key)


@pytest.mark.parametrize("change", ["labels", "prompts", "windows", "layers", "ids", "special", "base", "dtype"])
def test_collected_again_when_something_changed(tmp_path: Path, change: str) -> None:
    before = collect(routed_model(), tmp_path / "features")
    config: dict[str, Any] = {"windows": {"num_windows": 3}, "layers": {"layers_to_transform": [0, 1]}}.get(change, {})
    model = routed_model(**config)
    more: dict[str, Any] = {
        "labels": {"labels": random_labels(N, seed=1)},
        "prompts": {"prompts": random_prompts(N, seed=1)},
        "ids": {"ids": [f"other {row}" for row in range(N)]},
        "special": {"add_special_tokens": False},
    }.get(change, {})
    if change == "base":
        model.base_model.model.model.layers[4].base_layer.mlp.up_proj.weight.data.mul_(1.1)
    if change == "dtype":
        model.to(torch.bfloat16)
    after = collect(model, tmp_path / "features", **more)
    assert after.key != before.key
    found = FeatureStore.find(tmp_path / "features", after.key)
    assert found is not None
    assert np.array_equal(found.means, after.means)
    assert np.isfinite(before.means).all()  # the old map can still be read


@pytest.mark.parametrize("change", [{"rms_norm_eps": 0.5}, {"hidden_act": "relu"}, {"rope_theta": 100.0}])
def test_collected_again_when_the_same_weights_compute_something_else(tmp_path: Path, change: dict[str, Any]) -> None:
    before = np.array(collect(routed_model(), tmp_path / "features").means)
    after = collect(get_peft_model(tiny_model("llama", **change), DrLLMConfig()).eval(), tmp_path / "features")
    assert not np.allclose(before, after.means)


def test_where_the_base_lies_does_not_matter(tmp_path: Path) -> None:
    before = collect(routed_model(), tmp_path / "features")
    moved = tiny_model("llama")
    moved.save_pretrained(tmp_path / "base")
    again = type(moved).from_pretrained(tmp_path / "base")
    assert collect(get_peft_model(again, DrLLMConfig()).eval(), tmp_path / "features").key == before.key


def test_router_weights_do_not_matter(tmp_path: Path) -> None:
    model = routed_model()
    before = collect(model, tmp_path / "features")
    for name, parameter in model.named_parameters():
        if "drllm_router" in name:
            parameter.data.normal_()
    assert collect(model, tmp_path / "features").key == before.key


def test_model_keeps_its_mode_and_gets_no_gradients(tmp_path: Path) -> None:
    model = routed_model().train()
    collect(model, tmp_path / "features")
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (random_labels(N - 1), r"\[12 questions, 5 blocks\].*but int8 \[11, 5\]"),
        (random_labels(N, blocks=4), r"\[12 questions, 5 blocks\]"),
        (random_labels(N)[0], "labels must be whole numbers"),
        (random_labels(N).astype(float), "labels must be whole numbers"),
        (np.full((N, 5), 3, dtype=np.int8), r"question '0': decisions must be 0 \(skip\)"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(DrLLMError, match=message) as refusal:
        collect(routed_model(), tmp_path / "features", labels)
    one_sentence(refusal)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ids": ["a"]}, "ids must have one value for each of the 12 prompts, but 1"),
        ({"ids": ["a"] * 13, "labels": random_labels(13)}, "ids must have one value for each of the 12 prompts"),
        ({"add_special_tokens": [True]}, "add_special_tokens must have one value for each of the 12 prompts"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, but 0"),
        ({"prompts": [], "labels": np.zeros((0, 5), dtype=np.int8)}, "at least one question"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DrLLMError, match=message) as refusal:
        collect(routed_model(), tmp_path / "f", **more)
    one_sentence(refusal)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "'bad'.*has none"), ("2 " * 70, "64 positions.*'bad' has 70 tokens")]
)
def test_unusable_prompts_are_refused(tmp_path: Path, prompt: str, message: str) -> None:
    with pytest.raises(DrLLMError, match=message) as refusal:
        collect(
            routed_model(), tmp_path / "f", random_labels(2), ["3", prompt], ids=["ok", "bad"], add_special_tokens=False
        )
    one_sentence(refusal)


def test_hidden_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = routed_model()
    model.get_input_embeddings().weight.data[7] = float("nan")
    with pytest.raises(DrLLMError, match="question 'bad'") as refusal:
        collect(model, tmp_path / "f", random_labels(3), ["3 4 5", "6 7", "8"], ids=["a", "bad", "c"])
    one_sentence(refusal)
    assert not (tmp_path / "f" / "means.npy").exists()


def test_a_disabled_adapter_is_refused(tmp_path: Path) -> None:
    model = routed_model()
    with model.disable_adapter(), pytest.raises(DrLLMError, match="a router adapter must be active"):
        collect(model, tmp_path / "f")


@pytest.mark.parametrize("content", ["notes.txt", "drllm.json"])
def test_a_folder_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / content).write_text(json.dumps({"kind": "supervision set"}))
    with pytest.raises(DrLLMError, match="must be new") as refusal:
        collect(routed_model(), tmp_path)
    one_sentence(refusal)
    assert [path.name for path in tmp_path.iterdir()] == [content]


def test_too_small_a_disk_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = features_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(features_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DrLLMError, match="are free; free some space") as refusal:
        collect(routed_model(), tmp_path / "f")
    one_sentence(refusal)


@pytest.mark.parametrize("name", ["windows.npy", "labels.npy", "manifest.json"])
def test_a_disk_that_fills_up_at_the_end_leaves_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save, full = np.save, OSError(errno.ENOSPC, "No space left on device")

    def fail(path: Path, values: Any) -> None:
        save(path, values)
        if Path(path).name == name:
            raise full

    def fail_json(path: Path, value: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        if name == "manifest.json":
            patch.setattr(features_module, "write_json_atomic", fail_json)
        else:
            patch.setattr(features_module.np, "save", fail)
        with pytest.raises(DrLLMError, match="No space left on device") as refusal:
            collect(routed_model(), tmp_path / "f")
    one_sentence(refusal)
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["drllm.json"]


def break_off_after(rows: int, error: BaseException, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Collect, and break off when so many questions are written."""
    write, calls = FeatureWriter.write, []

    def break_off(self: FeatureWriter, *args: Any) -> None:
        calls.append(args)
        if len(calls) > rows:
            raise error
        write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "write", break_off)
        with pytest.raises(DrLLMError if isinstance(error, OSError) else KeyboardInterrupt) as refusal:
            collect(routed_model(), folder)
    if isinstance(error, OSError):
        assert "No space left on device" in str(refusal.value)
        one_sentence(refusal)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off_after(7, OSError(errno.ENOSPC, "No space left on device"), monkeypatch, tmp_path / "f")
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["drllm.json"]
    assert len(collect(routed_model(), tmp_path / "f")) == N


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_collection_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool) -> None:
    whole = collect(routed_model(), tmp_path / "whole")
    break_off_after(7, KeyboardInterrupt(), monkeypatch, tmp_path / "f")
    assert FeatureStore.find(tmp_path / "f", whole.key) is None
    (shard,) = (tmp_path / "f" / "batches").iterdir()
    if damaged:
        shard.write_bytes(b"{}")
    write, again = FeatureWriter.write, []

    def count(self: FeatureWriter, row: int, *args: Any) -> None:
        again.append(row)
        write(self, row, *args)

    monkeypatch.setattr(FeatureWriter, "write", count)
    store = collect(routed_model(), tmp_path / "f")
    # One batch of five was finished.
    assert len(again) == (N if damaged else N - 5)
    assert np.array_equal(store.means, whole.means)
    assert np.array_equal(store.windows, whole.windows)
    assert not (tmp_path / "f" / "batches").exists()


def test_a_damaged_store_is_collected_again(tmp_path: Path) -> None:
    before = collect(routed_model(), tmp_path / "f")
    (tmp_path / "f" / "windows.npy").write_bytes(b"nothing")
    after = collect(routed_model(), tmp_path / "f")
    assert np.array_equal(after.windows, before.windows)


def one_sentence(refusal: pytest.ExceptionInfo[BaseException]) -> None:
    text = str(refusal.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert ". " not in text
