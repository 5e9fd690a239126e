"""Operations and transfers of a decoded token: a fast path that is lost, or a wait for the device, shows here."""

from collections import Counter
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache
from unrolled import tiny_model

from drllm_adapter import DrLLMConfig, force_decisions

BLOCKS = 5
IDS = torch.arange(1, 25).reshape(4, 6)
UNIFORM = [1, 0, 2, 1, 1]
MIXED = [[1, 0, 2, 1, 1], [1, 1, 2, 0, 1], [0, 1, 2, 1, 1], [1, 1, 1, 1, 2]]
# Operations of a decoded token, where the base's are 1; paths have as many passes as it. See docs/benchmarks.md.
MOST = {"execute": 1.0, "uniform": 1.02, "mixed": 1.42}
# What brings a value from the device to the host; copies of a tensor between devices are seen as operations.
WAITS = {"tolist", "item", "__bool__", "__int__", "__index__", "__float__", "cpu", "numpy", "equal", "nonzero"}


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations[func.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in WAITS
        return func(*args, **(kwargs or {}))


def counted(model: Any, cache: Any, tokens: int = 1, reorder: bool = False) -> tuple[Counter[str], int]:
    """Operations and waits of decoding one token, after another one that warms up."""
    order = torch.tensor([1, 0, 3, 2])
    for _ in range(2):
        with Waits() as waits, Counted() as counts:
            model(IDS[:, :tokens], past_key_values=cache)
            if reorder:
                cache.reorder_cache(order.clone())
    return counts.operations, waits.count


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", ["execute", "uniform", "mixed"])
@torch.no_grad()
def test_decoding_waits_for_nothing_and_cuts_little(kind: str, static: bool) -> None:
    base = tiny_model("llama")
    path: Any = {"execute": [1] * BLOCKS, "uniform": UNIFORM, "mixed": MIXED}[kind]
    found = []
    for routed in (False, True):
        model = get_peft_model(base, DrLLMConfig()).eval() if routed else base
        cache = StaticCache(config=base.config, max_cache_len=16) if static else DynamicCache(config=base.config)
        if routed:
            with force_decisions(model, path):
                model(IDS, past_key_values=cache)
        else:
            model(IDS, past_key_values=cache)
        found.append(counted(model, cache))
    (plain, waits), (operations, waits_routed) = found
    assert waits_routed <= waits
    assert operations["_local_scalar_dense"] <= plain["_local_scalar_dense"]
    print(f"{kind}, static {static}: {plain.total()} in the base, {operations.total()} routed, {waits_routed} waits")
    assert operations.total() <= MOST[kind] * plain.total()
    if kind == "execute":
        assert operations == plain
    if kind == "mixed":
        partial = 5  # passes that some rows make and others do not: one of each block
        # Hidden states once a pass; a static cache has masks besides, once for each set of rows.
        assert operations["index_select"] <= (2 if static else 1) * partial
        assert operations["index_copy"] == partial


@torch.no_grad()
def test_beams_ask_the_device_once_for_all_blocks() -> None:
    base = tiny_model("llama")
    cache = DynamicCache(config=base.config)
    base(IDS, past_key_values=cache)
    plain, _ = counted(base, cache, reorder=True)
    model = get_peft_model(base, DrLLMConfig()).eval()
    for path, most, share in ((UNIFORM, 0, 1.0), (MIXED, 1, 1.43)):
        cache = DynamicCache(config=model.config)
        with force_decisions(model, path):
            model(IDS, past_key_values=cache)
        operations, waits = counted(model, cache, reorder=True)
        print(f"beams: {plain.total()} in the base, {operations.total()} routed, {waits} waits")
        assert waits <= most
        assert operations.total() <= share * plain.total()


@torch.no_grad()
def test_routers_ask_once_for_each_block_of_a_prompt() -> None:
    base = tiny_model("llama")
    with Counted() as plain:
        base(IDS)
    model = get_peft_model(base, DrLLMConfig()).eval()
    with Waits() as waits, Counted() as counts:
        model(IDS)
    print(f"prompt: {plain.operations.total()} in the base, {counts.operations.total()} routed, {waits.count} waits")
    assert waits.count <= BLOCKS + 1
    assert counts.operations.total() <= 1.26 * plain.operations.total()
