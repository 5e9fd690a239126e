"""Compiled decoding: a step is compiled once for a path, whatever cache it is given."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import CompileConfig
from unrolled import tiny_model, unrolled

from drllm_adapter import DrLLMConfig, force_decisions

ONE, OTHER = [1, 0, 2, 1, 1], [1, 1, 1, 0, 1]
MIXED = [ONE, OTHER]
PROMPTS = [torch.arange(1, 13).reshape(2, 6), torch.arange(3, 15).reshape(2, 6)]


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


@torch.no_grad()
def test_a_compiled_step_serves_every_cache_of_its_path() -> None:
    base, routed = tiny_model("llama"), get_peft_model(tiny_model("llama"), DrLLMConfig()).eval()
    graphs = []

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    settings = CompileConfig(backend=counting, fullgraph=False, mode=None)
    settings._compile_all_devices = True
    how = {"do_sample": False, "max_new_tokens": 5, "cache_implementation": "static", "compile_config": settings}
    compiled = []
    for path in (ONE, OTHER, MIXED, ONE, OTHER, MIXED):
        for prompt in PROMPTS:
            with force_decisions(routed, path):
                made = routed.generate(prompt, **how)
            rows = path if path is MIXED else [path, path]
            for row, decisions in enumerate(rows):
                expected = unrolled(base, decisions).generate(prompt[row : row + 1], do_sample=False, max_new_tokens=5)
                assert made[row].tolist() == expected[0].tolist()
        compiled.append(len(graphs))
    assert compiled[0] > 0
    assert compiled[0] < compiled[1] < compiled[2]
    assert compiled[2:] == [compiled[2]] * 4
