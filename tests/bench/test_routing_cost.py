"""What `drllm bench routing` compares a mixed batch with."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig
from drllm_adapter.bench.models import share
from drllm_adapter.bench.routing import Decoding, _written_out

BLOCKS = 4


@settings(max_examples=20, deadline=None)
@given(decisions=st.lists(st.tuples(*[st.integers(0, 2)] * BLOCKS), min_size=1, max_size=5))
def test_the_passes_written_out_are_those_of_the_mixed_batch(decisions: list[tuple[int, ...]]) -> None:
    if not any(map(any, decisions)):
        decisions = [*decisions, (0, 1, 0, 0)]  # a model without any block has no cache to decode with
    model = tiny_model("llama", BLOCKS)
    rows: list[int] = []
    for block in model.model.layers:
        block.mlp.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    routed = get_peft_model(share(model), DrLLMConfig()).eval()
    prompt = torch.randint(1, VOCABULARY, (len(decisions), 5))

    def decoded(model: Any, path: Any) -> list[int]:
        run = Decoding(model, prompt, 2, path)
        rows.clear()
        run()
        return list(rows)

    expected = [
        made for block in range(BLOCKS) for number in range(2)
        if (made := sum(row[block] > number for row in decisions))
    ]  # fmt: skip
    assert decoded(routed, decisions) == decoded(_written_out(model, decisions), None) == expected * 2
