"""Scoring takes the likeliest token each time, whatever generation_config.json of the base asks for."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_scoring import BASE, BLOCKS, TOKENIZER
from transformers import GenerationConfig
from unrolled import unrolled

from drllm_adapter import DrLLMConfig
from drllm_adapter.models.loading import route_base
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.scoring.shared_prefix import SharingScorer
from drllm_adapter.tasks import Prompt

PATHS = [(1, 1, 0, 1), (1,) * BLOCKS, (2, 1, 1, 0)]
TEXTS = ["w5 w9 w3 w7", "w11 w2", "w4 w4 w8 w30 w1"]
TOKENS = 6

# Everything in a `GenerationConfig` that changes what comes out, with a value that does; the answers below are of
# six tokens out of 61.
FIELDS: dict[str, Any] = {
    "num_beams": 3,
    "num_return_sequences": 2,
    "do_sample": True,
    "temperature": 9.0,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.3,
    "top_h": 0.5,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.2,
    "eta_cutoff": 0.2,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "length_penalty": -5.0,
    "early_stopping": True,
    "min_length": 40,
    "max_length": 2,
    "min_new_tokens": 50,
    "max_new_tokens": 1,
    "max_time": 1e-9,
    "stop_strings": ["w"],
    "bad_words_ids": [[token] for token in range(1, 40)],
    "suppress_tokens": list(range(1, 40)),
    "begin_suppress_tokens": list(range(1, 40)),
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "sequence_bias": [[[token], -100.0] for token in range(1, 40)],
    "exponential_decay_length_penalty": (1, 9.0),
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "guidance_scale": 5.0,
    "watermarking_config": {"bias": 50.0, "greenlist_ratio": 0.25},
    "prompt_lookup_num_tokens": 2,
    "use_cache": False,
    "cache_implementation": "static",
    "output_scores": True,
    "return_dict_in_generate": True,
    "output_hidden_states": True,
    "diversity_penalty": 9.0,
    "num_beam_groups": 3,
    "force_words_ids": [[7]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
}
# What says only which tokens are special, is about encoders and assistants, or is machinery.
NO_MATTER = {
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight",
    "assistant_lookbehind", "bos_token_id", "cache_config", "compile_config", "constraints",
    "continuous_batching_config", "decoder_start_token_id", "disable_compile", "eos_token_id", "is_assistant",
    "low_memory", "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "output_attentions", "output_logits", "pad_token_id",
    "prefill_chunk_size", "speculation_type", "target_lookbehind", "token_healing", "transformers_version",
    "use_mtp",
}  # fmt: skip


@cache
def answers() -> list[str]:
    """One token after another from the unrolled model, the likeliest each time."""
    found = []
    for text, path in zip(TEXTS, PATHS, strict=True):
        ids = TOKENIZER(text)["input_ids"]
        begin = len(ids)
        for _ in range(TOKENS):
            with torch.no_grad():
                ids.append(int(unrolled(BASE, list(path))(torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(TOKENIZER.decode(ids[begin:], skip_special_tokens=True))
    return found


def test_every_field_is_looked_at() -> None:
    public = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    assert public <= {*FIELDS, *NO_MATTER}


@pytest.mark.parametrize("field", FIELDS)
def test_scores_are_greedy(field: str) -> None:
    routed = get_peft_model(copy.deepcopy(BASE), DrLLMConfig()).eval()
    config = routed.get_base_model().generation_config
    setattr(config, field, FIELDS[field])
    if field == "num_return_sequences":
        config.num_beams = 3
    if field in ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"):
        config.do_sample = True
    before = config.to_dict()
    expected = answers()
    # The right answer is the first one's, another's and nobody's: all of it is generated, and judged.
    prompts = [
        Prompt(text, False, (f" {said}",), said, "free", TOKENS)
        for text, said in zip(TEXTS, [expected[0], expected[1], "w1 w2"], strict=True)
    ]
    plain = Scorer(routed, TOKENIZER).score(prompts, PATHS)
    assert [score.text for score in plain] == expected
    assert [score.correct for score in plain] == [True, True, False]
    shared = SharingScorer(routed, TOKENIZER).begin(prompts).score(range(3), PATHS)
    assert [score.correct for score in shared] == [True, True, False]
    assert routed.get_base_model().generation_config is config
    assert config.to_dict() == before


def test_a_call_that_fails_leaves_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = route_base(copy.deepcopy(BASE))
    base = routed.get_base_model()
    config = base.generation_config
    monkeypatch.setattr(base, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Scorer(routed, TOKENIZER).generate([Prompt("w5", False, (" w1",), "w1", "free", 3)], [(1,) * BLOCKS])
    assert base.generation_config is config


def test_tokens_of_a_set_are_not_kept() -> None:
    from drllm_adapter.scoring import plain

    scorer = Scorer(route_base(copy.deepcopy(BASE)), TOKENIZER)
    for number in range(2 * plain.KEPT):
        scorer.encode(Prompt("w5", False, (f" w{number % 60}",), number, "cloze", 1))
    assert scorer.encode.cache_info().currsize == plain.KEPT
