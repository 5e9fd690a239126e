"""Hundreds of damaged adapters: each gives exactly what the original gives with its settings, or is refused."""

import json
import os
import random
import re
import resource
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError, last_decisions
from drllm_adapter.adapter.integrity import check_adapter_folder

IDS = torch.randint(1, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 7, 10**12, 10**400, 0.5, -2.5, 1e300, float("nan"), float("inf"), "", "x", "7",
    "../../../etc/passwd", "/dev/zero", "x" * 100_000, [], [0], [1, 1], [99], [-1], [[0]], ["a"], {}, {"a": 1}, [None],
)  # fmt: skip
# A base model of another name is not the adapter's own, and another method's adapter is none of ours.
_NOT_MUTATED = ("peft_type",)

Mutation = Callable[[Path, random.Random], None]


def change_config(adapter: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = adapter / CONFIG
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def a_field(values: dict[str, Any], choose: random.Random) -> str:
    return choose.choice([name for name in sorted(values) if name not in _NOT_MUTATED])


def value_of_another_kind(adapter: Path, choose: random.Random) -> None:
    change_config(adapter, lambda values: values.update({a_field(values, choose): choose.choice(VALUES)}))


def key_missing(adapter: Path, choose: random.Random) -> None:
    change_config(adapter, lambda values: values.pop(a_field(values, choose)))


def key_extra(adapter: Path, choose: random.Random) -> None:
    name = choose.choice(["target_modules", "modules_to_save", "auto_map", "trust_remote_code", "r", "x" * 1000, ""])
    change_config(adapter, lambda values: values.update({name: choose.choice(VALUES)}))


def key_renamed(adapter: Path, choose: random.Random) -> None:
    def change(values: dict[str, Any]) -> None:
        name = a_field(values, choose)
        values[name.upper() if choose.random() < 0.5 else f"{name}_"] = values.pop(name)

    change_config(adapter, change)


def key_twice(adapter: Path, choose: random.Random) -> None:
    path = adapter / CONFIG
    name = a_field(json.loads(path.read_text()), choose)
    path.write_text(path.read_text().rstrip()[:-1] + f', "{name}": {json.dumps(choose.choice(VALUES))}}}')


def text_damaged(adapter: Path, choose: random.Random) -> None:
    damage_bytes(adapter / CONFIG, choose)


def nested_deeply(adapter: Path, choose: random.Random) -> None:
    depth = choose.choice([10, 1000, 100_000])
    (adapter / CONFIG).write_text('{"peft_type": "DRLLM", "training": ' + "[" * depth + "]" * depth + "}")


def change_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(adapter / WEIGHTS)
    change(weights)
    save_file(weights, adapter / WEIGHTS)


def tensor_changed(adapter: Path, choose: random.Random) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        name = choose.choice(sorted(weights))
        value = weights[name]
        weights[name] = choose.choice(
            [
                lambda: value[..., :1].contiguous(),
                lambda: torch.cat([value, value]),
                lambda: value[None],
                lambda: torch.zeros(0),
                lambda: value.double(),
                lambda: value.half(),
                lambda: value.to(torch.bfloat16),
                lambda: value.int(),
                lambda: value.bool(),
                lambda: value * float("nan"),
                lambda: value + float("inf"),
                lambda: value + 1e-4,
                lambda: -value,
            ]
        )()

    change_weights(adapter, change)


def tensor_missing_extra_renamed(adapter: Path, choose: random.Random) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        name = choose.choice(sorted(weights))
        kind = choose.randrange(4)
        if kind == 0:
            del weights[name]
        elif kind == 1:
            weights[name + ".more"] = torch.zeros(3)
        elif kind == 2:
            weights[re.sub(r"layers\.(\d+)", "layers.9", name)] = weights.pop(name)
        else:
            other = choose.choice(sorted(weights))
            weights[name], weights[other] = weights[other].clone(), weights[name].clone()

    change_weights(adapter, change)


def weights_damaged(adapter: Path, choose: random.Random) -> None:
    damage_bytes(adapter / WEIGHTS, choose)


def damage_bytes(path: Path, choose: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind = choose.randrange(5)
    place = choose.randrange(len(content))
    if kind == 0:
        content = content[:place]
    elif kind == 1:
        content[place] ^= 1 << choose.randrange(8)
    elif kind == 2:
        content[choose.randrange(min(len(content), 2000))] ^= 0xFF
    elif kind == 3:
        content[place:place] = bytes(choose.randrange(256) for _ in range(choose.randrange(1, 50)))
    else:
        del content[place : place + choose.randrange(1, 50)]
    path.write_bytes(content)


def header_rewritten(adapter: Path, choose: random.Random) -> None:
    """The header lies, the data stay: sizes, offsets, types, names that occur twice, a header that is huge."""
    path = adapter / WEIGHTS
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = choose.choice([key for key in header if key != "__metadata__"])
    kind = choose.randrange(8)
    if kind == 0:
        header[name]["data_offsets"] = [0, 2**40]
        header[name]["shape"] = [2**38]
    elif kind == 1:
        header[name]["shape"] = choose.choice([[-1], [2**62, 2**62], [1.5], "x", [[1]], None, [True]])
    elif kind == 2:
        header[name]["data_offsets"] = choose.choice([[0], [5, 1], [-8, 8], [0, 2**64], None, ["a", "b"], [0, 0]])
    elif kind == 3:
        header[name]["dtype"] = choose.choice(["F64", "I64", "F4", "", None, 7, "BOOL", "C64"])
    elif kind == 4:
        header[name] = choose.choice([None, [], {}, "x", {"dtype": "F32"}])
    elif kind == 5:
        header["__metadata__"] = {str(number): "x" * 1000 for number in range(2000)}
    text = json.dumps(header).encode()
    if kind == 6:
        text = text.rstrip()[:-1] + b", " + json.dumps({name: header[name]}).encode()[1:]
    claimed = choose.choice([2**63, 2**40, len(content) * 1000, 2**64 - 1]) if kind == 7 else len(text)
    path.write_bytes(struct.pack("<Q", claimed) + text + data)


def file_replaced(adapter: Path, choose: random.Random) -> None:
    name = choose.choice([CONFIG, WEIGHTS])
    path, kept = adapter / name, adapter.parent / f"kept-{name}"
    shutil.move(path, kept)
    kind = choose.randrange(8)
    if kind == 0:
        path.symlink_to(kept)  # the same content: loads
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        os.mkfifo(path)
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        path.symlink_to(adapter.parent / "nothing")
    elif kind == 6:
        path.write_bytes(b"")
    elif name == WEIGHTS:
        torch.save(load_file(kept), adapter / "adapter_model.bin")


MUTATIONS: tuple[Mutation, ...] = (
    value_of_another_kind,
    key_missing,
    key_extra,
    key_renamed,
    key_twice,
    text_damaged,
    nested_deeply,
    tensor_changed,
    tensor_missing_extra_renamed,
    weights_damaged,
    header_rewritten,
    file_replaced,
)
EACH = 45


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, torch.Tensor, torch.Tensor]:
    """A base, an adapter of it with settings that are not the defaults, and what the two give."""
    folder = tmp_path_factory.mktemp("original")
    base = tiny_model("llama").eval()
    config = DrLLMConfig(num_windows=3, router_width=16, layers_to_transform=[0, 2, 3], depth_control=-0.4)
    model = get_peft_model(base, config).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "drllm_router" in name:
            torch.nn.init.normal_(parameter, std=1.0 if "up" in name else 0.3)
    with torch.no_grad():
        logits = model(IDS).logits
    decisions = last_decisions(model)
    model.save_pretrained(folder / "adapter")
    return model.unload(), folder / "adapter", logits, decisions


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def what_is_meant(original: Any, edited: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and decisions of the original under the settings that a person may change in the file."""
    _base, adapter, logits, decisions = original
    config, fresh = PeftConfig.from_pretrained(adapter), DrLLMConfig()
    values = json.loads((edited / CONFIG).read_text())
    same = True
    for name in ("num_windows", "depth_control", "layer_budget"):
        value = values.get(name, getattr(fresh, name))
        same &= value == getattr(config, name)
        setattr(config, name, value)
    if same:
        return logits, decisions
    model = PeftModel.from_pretrained(tiny_model("llama").eval(), adapter, config=config)
    return model(IDS).logits, last_decisions(model)


def load_with_peft(base: Any, adapter: Path) -> Any:
    # As every loader of this project does before it asks PEFT.
    check_adapter_folder(adapter)
    return PeftModel.from_pretrained(base, str(adapter))


def load_with_peft_alone(base: Any, adapter: Path) -> Any:
    return PeftModel.from_pretrained(base, str(adapter))


def load_with_transformers(base: Any, adapter: Path) -> Any:
    base.load_adapter(str(adapter))
    return base


def release(base: Any) -> None:
    """Take away whatever a load, finished or not, has put around the base."""
    from drllm_adapter.adapter.attaching import remove_routers

    remove_routers(base)
    for name in ("_load_pretrained_model", "save_pretrained", "peft_config"):
        base.__dict__.pop(name, None)
    base._hf_peft_config_loaded = False


@pytest.mark.parametrize("mutation", MUTATIONS)
@torch.no_grad()
def test_a_mutated_adapter_is_the_original_or_is_refused(mutation: Mutation, original: Any, tmp_path: Path) -> None:
    base, adapter, *_ = original
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentences = []
    for number in range(EACH):
        choose = random.Random(f"{mutation.__name__} {number}")
        damaged = tmp_path / str(number) / "adapter"
        shutil.copytree(adapter, damaged)
        mutation(damaged, choose)
        try:
            model = load_with_peft(base, damaged).eval()
        except DrLLMError as error:
            sentences.append(str(error))
        else:
            expected, route = what_is_meant(original, damaged)
            assert torch.equal(model(IDS).logits, expected), (mutation.__name__, number)
            assert torch.equal(last_decisions(model), route)
        finally:
            release(base)
        shutil.rmtree(damaged.parent)
    assert sentences
    assert [sentence for sentence in sentences if not re.fullmatch(r"[^\n]{20,1000}\.", sentence)] == []
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    assert grown < 30e6, f"{grown / 1e6:.0f} MB"


def is_ours(adapter: Path) -> bool:
    """Whether a library can tell whose method this is: until then it asks no method, and says itself what is wrong."""
    try:
        return (adapter / CONFIG).is_file() and json.loads((adapter / CONFIG).read_text())["peft_type"] == "DRLLM"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


@pytest.mark.parametrize("load", [load_with_peft_alone, load_with_transformers])
@pytest.mark.parametrize("mutation", MUTATIONS)
@torch.no_grad()
def test_the_libraries_own_loading_gives_nothing_else(
    mutation: Mutation, load: Callable[[Any, Path], Any], original: Any, tmp_path: Path
) -> None:
    """A library says in its own words that it cannot read a configuration; all else is as above."""
    base, adapter, *_ = original
    for number in range(EACH // 3):
        choose = random.Random(f"{mutation.__name__} {number}")
        damaged = tmp_path / str(number) / "adapter"
        shutil.copytree(adapter, damaged)
        mutation(damaged, choose)
        says_itself = not is_ours(damaged)
        refusal: Exception | None = None
        try:
            model = load(base, damaged).eval()
        except Exception as error:
            refusal = error
        else:
            expected, _ = what_is_meant(original, damaged)
            assert torch.equal(model(IDS).logits, expected), (mutation.__name__, number)
        finally:
            release(base)
        one_sentence = isinstance(refusal, DrLLMError) and re.fullmatch(r"[^\n]{20,1000}\.", str(refusal))
        assert refusal is None or says_itself or one_sentence, (mutation.__name__, number, refusal)
        shutil.rmtree(damaged.parent)
