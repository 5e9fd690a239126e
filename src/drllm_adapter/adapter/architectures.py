"""What cannot be derived from a model: which architectures are proven, which are refused and why, odd arguments.

The lists follow from `pytest -m conformance`, which tries every causal-LM architecture of transformers and writes
docs/architectures.md.
"""

EXACT = frozenset(
    """
    afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba beam biogpt bitnet bloom codegen cohere cohere2
    cohere2_moe ctrl cwm deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge dots1 dots3_note_text ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint gemma gemma2 gemma3_text glm glm4
    glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa
    granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hyperclovax inkling_text internlm3 iquestcoder jais2 jamba jetmoe kimi_linear kolibri1 laguna lfm2 lfm2_moe
    lfm3 llama llama4_text mamba mamba2 mellum mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text ministral
    ministral3 mistral mixtral modernbert-decoder mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid
    olmoe opt persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_5_vl_text qwen2_moe qwen2_vl_text qwen3
    qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma
    xglm youtu
    """.split()  # noqa: SIM905 - a list of strings would be a hundred lines
)
"""`model_type` of the text decoders for which the tests prove routed execution equal to the unrolled model."""

_STREAMS = "blocks hand on several streams side by side (hyper-connections), which routers do not read"
_SHARED = "blocks may share keys and values with earlier ones, by the configuration"
_STATES = "blocks hand a second stream from one to the next"

REFUSED = {
    "bart": "the decoder of an encoder-decoder, whose cache has a second half",
    "bert": "an encoder that can be told to decode",
    "bert-generation": "an encoder that can be told to decode",
    "big_bird": "an encoder that can be told to decode",
    "bigbird_pegasus": "the decoder of an encoder-decoder, whose cache has a second half",
    "blenderbot": "the decoder of an encoder-decoder, whose cache has a second half",
    "blenderbot-small": "the decoder of an encoder-decoder, whose cache has a second half",
    "camembert": "an encoder that can be told to decode",
    "cpmant": "its stack is given states with soft prompts in front, not tokens, so prompt and padding cannot be told",
    "data2vec-text": "an encoder that can be told to decode",
    "deepseek_v4": _STREAMS,
    "electra": "an encoder that can be told to decode",
    "ernie": "an encoder that can be told to decode",
    "gemma3n": "blocks share keys and values and read per-layer inputs",
    "gemma3n_text": "blocks share keys and values and read per-layer inputs",
    "gemma4": "blocks read per-layer inputs and may share keys and values",
    "gemma4_text": "blocks read per-layer inputs and may share keys and values",
    "gemma4_unified": _SHARED,
    "gemma4_unified_assistant": _SHARED,
    "gemma4_unified_assistant_text": _SHARED,
    "gemma4_unified_text": _SHARED,
    "git": "an encoder that can be told to decode",
    "glm_moe_dsa": "blocks may use the tokens that the block before them selected, by the configuration",
    "hrm_text": "its forward runs a list of blocks more than once",
    "hy_v4": _STREAMS,
    "inkling2_text": _STATES,
    "longcat_flash": "its configuration counts two layers of the cache for one block",
    "marian": "the decoder of an encoder-decoder, whose cache has a second half",
    "mbart": "the decoder of an encoder-decoder, whose cache has a second half",
    "megatron-bert": "an encoder that can be told to decode",
    "minimax": "has a cache class of its own",
    "moshi": "the base model itself decodes differently with and without a cache",
    "mvp": "the decoder of an encoder-decoder, whose cache has a second half",
    "openai-gpt": "has no cache and its blocks return lists",
    "pegasus": "the decoder of an encoder-decoder, whose cache has a second half",
    "plbart": "the decoder of an encoder-decoder, whose cache has a second half",
    "prophetnet": "the decoder of an encoder-decoder, whose cache has a second half",
    "qwen3_vl_text": "its forward loop adds features of the image behind certain places of the stack",
    "recurrent_gemma": "its recurrent states are in the blocks, not in the cache",
    "reformer": "reversible blocks over hashed buckets",
    "rembert": "an encoder that can be told to decode",
    "roberta": "an encoder that can be told to decode",
    "roberta-prelayernorm": "an encoder that can be told to decode",
    "roc_bert": "an encoder that can be told to decode",
    "roformer": "an encoder that can be told to decode",
    "rwkv": "its states are not in a cache of layers",
    "trocr": "the decoder of an encoder-decoder, whose cache has a second half",
    "xlm": "its blocks are spread over several lists",
    "xlm-roberta": "an encoder that can be told to decode",
    "xlm-roberta-xl": "an encoder that can be told to decode",
    "xlnet": "permuted, two-stream attention",
    "xlstm": "has a cache class of its own",
    "xmod": "an encoder that can be told to decode",
    "zamba": "blocks share weights between positions",
    "zamba2": "blocks share weights between positions",
    "zaya": _STATES,
}
"""Reasons, for those that are known not to work."""

HEADS_IN_ROWS = frozenset({"alibi"})
"""Arguments of blocks that fold the heads into the batch, `[batch x heads, 1, key]`: BLOOM and Falcon."""

SHARED_BY_ROWS = frozenset({"position_bias"})
"""Arguments of blocks that all rows share though there may be as many entries as rows, `[heads, 1, key]`: MPT."""
