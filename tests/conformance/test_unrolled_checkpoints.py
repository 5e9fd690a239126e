"""Every architecture that routes exactly: a path as a plain checkpoint is the unrolled model, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_architectures import NOT_BUILT, relative
from tiny import NUM_BLOCKS, VOCABULARY, tiny_model
from transformers import AutoModelForCausalLM
from unroll import unrolled

from drllm_adapter import DrLLMError
from drllm_adapter.adapter.architectures import EXACT
from drllm_adapter.models import unroll

PATHS = [(0, 2, 1, 2), (1, 0, 2, 1), (2, 1, 1, 0)]
assert all(len(path) == NUM_BLOCKS for path in PATHS)

# What no plain configuration describes, and why.
REFUSED = {
    "beam": "attn_residual_add_idx",
    "diffllama": "lambda_init",
    "dots3_note_text": "describes no model",
    "ernie4_5_moe": "another",
    "gpt_neox_japanese": "use_bias",
    "jamba": "Jamba",
    "minicpm3": "residual_scale",
    "modernbert-decoder": "attn_norm",
}
ALIKE = 1e-5
"""Kernels round by where in memory a weight lies, so that even a base that is saved and loaded again may differ."""

IN_WRAPPERS = {"qwen2_vl_text", "qwen2_5_vl_text"}
"""Decoders of multimodal models that have no causal language model of their own."""

QUICK = ("gpt_neo", "llama4_text", "mixtral")
TYPES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.conformance)
    for name in sorted(EXACT - NOT_BUILT.keys() - IN_WRAPPERS)
]


class _NoTokenizer:
    def save_pretrained(self, folder: Any) -> None:
        pass


@torch.no_grad()
@pytest.mark.parametrize("model_type", TYPES)
def test_exported_is_unrolled(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unroll.AutoTokenizer, "from_pretrained", lambda *_, **__: _NoTokenizer())
    tiny_model(model_type).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    base = unroll.look_at_base(str(tmp_path / "base"))
    ids = torch.randint(2, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    refused = []
    for number, path in enumerate(PATHS):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            unroll.write_unrolled(base, path, folder)
        except DrLLMError as error:
            refused.append(str(error))
            continue
        found, expected = AutoModelForCausalLM.from_pretrained(folder).eval(), unrolled(model, list(path))
        weights = expected.state_dict()
        assert found.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in found.state_dict().items())
        assert relative(found(ids, use_cache=False).logits, expected(ids, use_cache=False).logits) < ALIKE
    assert bool(refused) == (model_type in REFUSED)
    assert all(model_type in sentence and REFUSED[model_type] in sentence for sentence in refused)
