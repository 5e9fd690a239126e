"""Every causal-LM architecture of transformers: exact, refused by name, or not built here - silently wrong: none.

`pytest -m conformance` runs all of them and writes docs/architectures.md; a few run by default.
"""

import copy
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from tiny import MODEL_TYPES, NUM_BLOCKS, VOCABULARY, tiny_config, tiny_model
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from unroll import layer_list, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions
from drllm_adapter.adapter.architectures import EXACT, REFUSED

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
QUICK = (
    "bloom", "deepseek_v3", "falcon", "falcon_h1", "gemma3_text", "gpt_neox", "gpt_oss", "lfm2", "mamba", "mixtral",
    "mpt", "opt", "qwen3_next",
)  # fmt: skip
NOT_BUILT = {
    "blt": "a byte-level model with a patcher of its own",
    "cohere_compass_text": "needs rotary parameters for each kind of block, which its defaults do not give",
    "dbrx": "its configuration class gives its attention no rotary base, so no model can be built from it alone",
    "emu3": "its text configuration has no causal-LM class of its own",
    "gemma4_assistant": "an assistant that only runs beside its target",
    "mllama": "its text decoder needs the vision part",
    "musicgen": "decodes audio codes, has no causal-LM class for text",
    "musicgen_melody": "decodes audio codes, has no causal-LM class for text",
    "qwen4_exp": "needs sizes of its linear attention, which its defaults do not give",
    "qwen4_exp_text": "needs sizes of its linear attention, which its defaults do not give",
    "whisper": "decodes speech, needs its encoder",
}
# Three rows that skip, execute and repeat different blocks, of 6, 9 and 8 tokens, padded on the left.
DECISIONS = [[0, 2, 1, 2], [1, 0, 2, 1], [2, 1, 1, 0]]
NEW_TOKENS = 4
TOLERANCE = 2e-4

_outcomes: dict[str, tuple[str, str]] = {}


def text_type(model_type: str) -> str:
    """The type of the text decoder inside a multimodal wrapper; most are their own."""
    try:
        return str(tiny_config(model_type).model_type)
    except Exception:
        return model_type


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(2, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    ids[0, :3] = 0
    ids[2, :1] = 0
    mask = (ids != 0).long()
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def check_exact(model_type: str, **changes: Any) -> None:
    """The base bit for bit when disabled; each row of a mixed batch as its unrolled model, cached and not."""
    base = tiny_model(model_type, **changes)
    ids, mask, positions = batch()
    arguments: dict[str, Any] = {"attention_mask": mask}
    if "position_ids" in inspect.signature(type(base).forward).parameters:
        arguments["position_ids"] = positions
    routed = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    fresh = routed(ids, **arguments).logits
    with routed.disable_adapter():
        assert torch.equal(routed(ids, **arguments).logits, fresh)
    generation = {
        "attention_mask": mask, "max_new_tokens": NEW_TOKENS, "do_sample": False, "output_logits": True,
        "return_dict_in_generate": True,
    }  # fmt: skip
    with force_decisions(routed, DECISIONS):
        logits = routed(ids, **arguments).logits
        cached = routed.generate(ids, **generation)
        uncached = routed.generate(ids, **generation, use_cache=False)
    assert last_decisions(routed).tolist() == DECISIONS
    for row, path in enumerate(DECISIONS):
        real = mask[row].bool()
        prompt = ids[row][real][None]
        model = unrolled(base, path)
        assert relative(logits[row, real], model(prompt).logits[0]) < TOLERANCE
        alone = {**generation, "attention_mask": torch.ones_like(prompt)}
        expected = model.generate(prompt, **alone)
        steps = torch.stack(expected.logits, 1)[0]
        assert relative(torch.stack(cached.logits, 1)[row], steps) < TOLERANCE
        assert relative(torch.stack(uncached.logits, 1)[row], steps) < TOLERANCE
        assert cached.sequences[row, ids.shape[1] :].tolist() == expected.sequences[0, prompt.shape[1] :].tolist()
    _check_sizes_that_coincide(base, routed)
    _check_calls(routed, ids, arguments)


def _check_sizes_that_coincide(base: Any, routed: Any) -> None:
    """As many rows as tokens, heads, blocks or experts (4), or key and value heads (2): rows are told from those."""
    for rows in (4, 2):
        paths = [[0, 2, 1, 2], [1, 0, 2, 1], [2, 1, 1, 0], [0, 0, 2, 1]][:rows]
        ids = torch.randint(2, VOCABULARY, (rows, rows), generator=torch.Generator().manual_seed(rows))
        with force_decisions(routed, paths):
            logits = routed(ids).logits
        for row, path in enumerate(paths):
            assert relative(logits[row], unrolled(base, path)(ids[row : row + 1]).logits[0]) < TOLERANCE


def _check_calls(routed: Any, ids: torch.Tensor, arguments: dict[str, Any]) -> None:
    """A skipped block runs none of its parts, an executed one each of them once, a repeated one twice."""
    calls: dict[tuple[int, str], int] = {}
    handles = []
    owner, attribute = layer_list(routed, NUM_BLOCKS)
    for block, layer in enumerate(getattr(owner, attribute)):
        for name, part in layer.base_layer.named_modules():

            def count(*_: Any, key: tuple[int, str] = (block, name)) -> None:
                calls[key] = calls.get(key, 0) + 1

            handles.append(part.register_forward_pre_hook(count))
    made = []
    for path in ([1] * NUM_BLOCKS, [0, 2, 1, 2]):
        calls.clear()
        with force_decisions(routed, path):
            routed(ids, **arguments)
        made.append(dict(calls))
    for handle in handles:
        handle.remove()
    assert {block for block, _ in made[1]} == {1, 2, 3}
    # Which experts run depends on the tokens; all other parts run as often as their block.
    for (block, name), times in made[0].items():
        if "expert" not in name:
            assert made[1].get((block, name), 0) == [0, 2, 1, 2][block] * times


def check(model_type: str) -> tuple[str, str]:
    """Outcome and reason; raises when an allowed architecture is not exact."""
    text = text_type(model_type)
    if text in EXACT:
        check_exact(model_type)
        return "exact", "" if text == model_type else f"as {text}"
    if model_type in NOT_BUILT:
        return "not built here", NOT_BUILT[model_type]
    assert text in REFUSED, f"{model_type} has no outcome"
    try:
        model = tiny_model(model_type)
    except Exception:
        return "refused", REFUSED[text]
    with pytest.raises(DrLLMError, match=text.replace("-", "."), check=lambda error: REFUSED[text] in str(error)):
        get_peft_model(model, DrLLMConfig())
    return "refused", REFUSED[text]


VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("falcon", {"alibi": True}),
    ("falcon", {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),  # a block keeps the index that it was built with
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 2, "layer_types": None}),
    ("llama4_text", {"no_rope_layers": [1, 0, 1, 0], "attention_chunk_size": 6}),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "changes"), VARIANTS)
def test_options_that_change_what_blocks_are_given(model_type: str, changes: dict[str, Any]) -> None:
    check_exact(model_type, **changes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_flex_attention(model_type: str) -> None:
    """Block masks and their functions are cut to the rows that run.

    Not compiled: for so small a model torch 2.13 writes code for the CPU that its compiler refuses.
    """
    with torch.compiler.set_stance("force_eager"):
        check_exact(model_type, attention="flex_attention", head_dim=16)
    assert tiny_model(model_type, "flex_attention", head_dim=16).config._attn_implementation == "flex_attention"


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Stands in for flash attention, which needs a GPU: `mask` is padding, `[batch, keys]`, or nothing."""
    assert mask is None or mask.shape == (len(query), key.shape[2])
    ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
    last = key.shape[2] - query.shape[2]
    allowed = ones.tril(last)
    if options.get("sliding_window"):
        allowed = allowed & ones.triu(last - options["sliding_window"] + 1)
    if mask is not None:
        allowed = allowed & mask[:, None, None, :].bool() | ones.tril(last).triu(last)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = options.get("scaling")
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)
    return out.transpose(1, 2).contiguous(), None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mixtral"])
def test_padding_of_two_dimensions_as_flash_attention_has_it(model_type: str) -> None:
    AttentionInterface.register("by_padding", attend)
    AttentionMaskInterface.register("by_padding", flash_attention_mask)
    check_exact(model_type, attention="by_padding")
    assert tiny_model(model_type, "by_padding").config._attn_implementation == "by_padding"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", QUICK)
def test_a_few_architectures(model_type: str) -> None:
    assert check(model_type)[0] == "exact"


@pytest.mark.conformance
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_architecture(model_type: str) -> None:
    _outcomes[model_type] = check(model_type)


@pytest.fixture(scope="module", autouse=True)
def _write_table() -> Iterator[None]:
    """A run over all architectures writes what it found."""
    yield
    if len(_outcomes) == len(MODEL_TYPES):
        TABLE.write_text(table(_outcomes))


def table(outcomes: dict[str, tuple[str, str]]) -> str:
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, (outcome, reason) in sorted(outcomes.items()):
        as_other = f"`{name}` ({reason})" if outcome == "exact" and reason else f"`{name}`"
        reasons.setdefault((outcome, "" if outcome == "exact" else reason), []).append(as_other)
    exact = reasons.pop(("exact", ""))
    others = sorted(reasons.items(), key=lambda item: (item[0][0] != "refused", item[1]))
    lines = [
        "# Architectures",
        "",
        f"Every model type that `AutoModelForCausalLM` of transformers {transformers.__version__} knows, as a tiny",
        "random model of 4 blocks with every kind of block that the architecture has. Exact: disabled it is the base",
        "bit for bit, and each row of a left-padded batch with mixed decisions has the logits and greedy tokens of its",
        "unrolled model, with and without a cache. What is not exact is refused by name. Written by",
        "`pytest -m conformance`.",
        "",
        "Text decoders inside multimodal models are those of the same name; those of Qwen2-VL and Qwen2.5-VL, which",
        "have no causal-LM class of their own, are proven in tests/conformance/test_generation.py.",
        "",
        f"**{len(exact)} exact**: {', '.join(exact)}.",
        "",
        "| not exact | | why |",
        "|---|---|---|",
        *(f"| {', '.join(names)} | {outcome} | {why} |" for (outcome, why), names in others),
    ]
    return "\n".join(lines) + "\n"


def test_the_documented_table_is_what_the_package_allows() -> None:
    text = TABLE.read_text()
    listed, _, rest = text.partition("exact**: ")[2].partition("\n")
    exact, others = (re.findall("`([a-z0-9_-]+)`", part) for part in (listed, rest))
    assert len(exact) >= 110
    written_for = text.partition("of transformers ")[2].partition(" ")[0]
    if written_for == transformers.__version__:
        assert sorted(exact + others) == MODEL_TYPES
    for names, is_exact in ((exact, True), (others, False)):
        for name in set(names) & set(MODEL_TYPES):
            assert (text_type(name) in EXACT) == is_exact, name
