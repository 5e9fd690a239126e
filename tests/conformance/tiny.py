"""Tiny random models of every causal-LM architecture of transformers, from its own configuration class."""

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NUM_BLOCKS = 4
VOCABULARY = 61

# What a size is called differs; whichever of these a configuration has is made small.
SHRUNK: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "emb_dim": 32, "word_embed_proj_dim": 32,
    "embedding_size": 32, "embed_dim": 32, "model_dim": 32,
    "num_hidden_layers": NUM_BLOCKS, "n_layer": NUM_BLOCKS, "n_layers": NUM_BLOCKS, "num_layers": NUM_BLOCKS,
    "decoder_layers": NUM_BLOCKS, "encoder_layers": NUM_BLOCKS,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2, "num_kv_heads": 2, "multi_query_group_num": 2, "n_head_kv": 2,
    "head_dim": 8, "attention_head_dim": 8, "kv_channels": 8, "d_kv": 8, "global_head_dim": 8, "swa_head_dim": 8,
    "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48, "d_ff": 48, "ffn_hidden_size": 48, "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48, "dense_intermediate_size": 48, "mlp_intermediate_size": 48,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16, "expert_ffn_hidden_size": 16, "intermediate_size_mlp": 48,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_k": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "zero_expert_num": 1,
    "first_k_dense_replace": 1, "num_expert_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "qk_head_dim": 16,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "max_sequence_length": 64,
    "sliding_window": 6, "attention_window_size": 6, "window_size": 6, "attention_chunk_size": 64,
    "state_size": 8, "mamba_d_state": 8, "ssm_state_size": 8, "d_state": 8, "mamba_n_heads": 4, "mamba_num_heads": 4,
    "mamba_d_head": 16, "mamba_head_dim": 16, "mamba_n_groups": 1, "n_groups": 1, "time_step_rank": 4,
    "mamba_dt_rank": 4, "mamba_d_ssm": 64, "chunk_size": 8, "mamba_chunk_size": 8, "lru_width": 32,
    "attention_hidden_size": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "rope_pct": 0.5,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    "attn_pdrop": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip

LATENT_ATTENTION = (
    "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note", "dots3_note_text",
    "glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "longcat_flash", "minicpm3", "youtu",
)  # fmt: skip
"""These have as many key and value heads as heads."""

# What cannot be guessed from names.
OVERRIDES: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in LATENT_ATTENTION},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

MODEL_TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **changes: Any) -> Any:
    """The architecture's configuration with every size made small."""
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    text = default.get_text_config(decoder=True)
    attributes = text.to_dict()
    chosen = {name: value for name, value in SHRUNK.items() if name in attributes}
    for alias, name in getattr(type(text), "attribute_map", {}).items():
        if name in attributes and alias in SHRUNK:
            chosen[name] = SHRUNK[alias]
    if isinstance(attributes.get("eos_token_id"), list):
        chosen["eos_token_id"] = None
    for name in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types"):
        value = attributes.get(name)
        if isinstance(value, (list, tuple)) and len(value) > NUM_BLOCKS:
            kinds = list(dict.fromkeys(value))
            # Every kind of block, in the order in which they come.
            chosen[name] = [kinds[place % len(kinds)] for place in range(NUM_BLOCKS)]
    chosen |= OVERRIDES.get(model_type, {}) | changes
    config = type(text)(**chosen)
    return config


def tiny_model(model_type: str, attention: str = "sdpa", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model whose blocks matter, in float32 and evaluation mode."""
    torch.manual_seed(seed)
    config = tiny_config(model_type, **changes)
    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except ValueError as error:
        if "attention" not in str(error).lower():
            raise
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.float().eval()
