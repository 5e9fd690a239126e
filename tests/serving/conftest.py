"""A base and its adapter; and before vLLM is imported: a CPU engine in the process of the tests, with little memory."""

import os
from importlib.util import find_spec

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from unrolled import tiny_model

from drllm_adapter import DrLLMConfig
from drllm_adapter.demo import BASE

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# The process of the tests is bound to no core, since the library runs in it as well.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
# vLLM compiles what it counts likelihoods with, which takes minutes. Tests of compilation run where vLLM is not.
if find_spec("vllm") is not None:
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small Llama with heads that vLLM's attention on CPUs has kernels for."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 80}
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_model("llama", 8, max_position_embeddings=128, **sizes).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Routers that decide differently for different prompts; two blocks have none."""
    config = DrLLMConfig(layers_to_transform=[0, 1, 2, 4, 5, 7])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "drllm_router" in name:
            torch.nn.init.normal_(parameter, std=3.0 if "up" in name else 0.3)
    folder = tmp_path_factory.mktemp("made") / "routers"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def library(base: str, adapter: str) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
