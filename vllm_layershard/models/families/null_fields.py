"""Fields in which a null is no value: vLLM does not load such a config.

Source: transformers 5 and vLLM 0.32, the config class of each model_type: it refuses a null in each
field that it declares without None. A test asks the classes. It is read only where a null stands.
"""

from __future__ import annotations

from typing import Final

_EVERY: Final = (
    "hidden_act hidden_size initializer_range max_position_embeddings num_attention_heads "
    "rms_norm_eps use_cache vocab_size"
)
_USUAL: Final = f"{_EVERY} intermediate_size num_hidden_layers tie_word_embeddings"
_DENSE: Final = f"{_USUAL} attention_dropout"
_CHOSEN: Final = "num_experts_per_tok output_router_logits"
_LOSS: Final = f"{_CHOSEN} router_aux_loss_coef"
_GROUPS: Final = "n_group norm_topk_prob num_experts_per_tok topk_group"
_LATENT: Final = "kv_lora_rank qk_nope_head_dim qk_rope_head_dim"
_ROUTED: Final = (
    "attention_bias moe_intermediate_size n_routed_experts n_shared_experts output_router_logits "
    "routed_scaling_factor"
)
_LOCAL: Final = f"{_DENSE} {_LOSS} num_key_value_heads num_local_experts"
_LINEAR: Final = (
    "linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads linear_num_value_heads "
    "linear_value_head_dim attention_bias attention_dropout head_dim num_key_value_heads"
)
_DEEPSEEK_V3: Final = f"{_USUAL} {_LATENT} {_ROUTED} num_mtp_layers"
_QWEN3_5: Final = f"{_USUAL} {_LINEAR}"
_QWEN3_5_MOE: Final = (
    f"{_EVERY} {_LINEAR} {_LOSS} num_hidden_layers tie_word_embeddings moe_intermediate_size "
    "num_experts shared_expert_intermediate_size"
)
_QWEN3_MOE: Final = (
    f"{_DENSE} {_LOSS} attention_bias decoder_sparse_step moe_intermediate_size num_experts "
    "num_key_value_heads"
)

_BY_THE_CLASS: Final = {
    "deepseek_v2": (f"{_USUAL} {_LATENT} {_ROUTED} first_k_dense_replace mlp_bias v_head_dim"),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "kimi_k25": _DEEPSEEK_V3,
    "glm4_moe": (
        f"{_DENSE} {_GROUPS} {_ROUTED} first_k_dense_replace num_key_value_heads num_mtp_layers "
        "use_qk_norm"
    ),
    "glm4_moe_lite": (
        f"{_DENSE} {_GROUPS} {_LATENT} {_ROUTED} num_key_value_heads pretraining_tp "
        "rope_interleave v_head_dim"
    ),
    "glm_moe_dsa": (
        f"{_DENSE} {_GROUPS} {_LATENT} {_ROUTED} first_k_dense_replace head_dim index_head_dim "
        "index_n_heads index_topk mlp_bias num_key_value_heads q_lora_rank v_head_dim"
    ),
    "gpt_oss": f"{_LOCAL} attention_bias head_dim swiglu_alpha swiglu_limit",
    "llama": f"{_USUAL} attention_bias mlp_bias",
    "longcat_flash": (
        f"{_EVERY} {_LATENT} attention_bias attention_dropout expert_ffn_hidden_size "
        "ffn_hidden_size head_dim moe_topk n_routed_experts num_hidden_layers num_layers "
        "output_router_logits q_lora_rank routed_scaling_factor tie_word_embeddings v_head_dim "
        "zero_expert_num"
    ),
    "minimax_m2": f"{_LOCAL} head_dim router_jitter_noise",
    "ministral3": f"{_DENSE} head_dim num_key_value_heads",
    "mistral": f"{_DENSE} num_key_value_heads",
    "mixtral": f"{_LOCAL} router_jitter_noise",
    "qwen2": f"{_DENSE} max_window_layers use_sliding_window",
    "qwen3": f"{_DENSE} attention_bias head_dim max_window_layers use_sliding_window",
    "qwen3_moe": f"{_QWEN3_MOE} norm_topk_prob use_sliding_window",
    "qwen3_next": (
        f"{_USUAL} {_LINEAR} {_LOSS} decoder_sparse_step moe_intermediate_size norm_topk_prob "
        "num_experts shared_expert_intermediate_size"
    ),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5_MOE,
    "qwen3_5_moe_text": _QWEN3_5_MOE,
    "qwen3_vl": (
        f"{_EVERY} attention_bias attention_dropout head_dim intermediate_size num_hidden_layers"
    ),
    "qwen3_vl_moe": _QWEN3_MOE,
}
"""By model_type; of a multimodal one those of its language model."""

_BY_THE_MODEL: Final = {
    "bailing_moe": "num_key_value_heads",
    "bailing_moe_v2": "num_key_value_heads",
    "deepseek_v2": "index_topk moe_layer_freq",
    "deepseek_v3": "first_k_dense_replace index_topk moe_layer_freq",
    "deepseek_v32": "first_k_dense_replace index_topk moe_layer_freq",
    "kimi_k2": "first_k_dense_replace index_topk moe_layer_freq",
    "kimi_k25": "first_k_dense_replace index_topk model_type moe_layer_freq",
    "glm_moe_dsa": "moe_layer_freq",
    "glm4_moe_lite": "first_k_dense_replace index_topk moe_layer_freq",
    "qwen3_moe": "shared_expert_intermediate_size",
    "qwen3_vl_moe": "shared_expert_intermediate_size",
}
"""vLLM's model, not the class: it compares or divides by it, or allocates it.

Kimi-K2.5's class finds another class by its language model's model_type."""

_AROUND: Final = (
    "image_token_id video_token_id vision_start_token_id vision_end_token_id tie_word_embeddings "
    "projection_layer_norm_eps"
)
"""Of what stands beside the language model in a multimodal config."""


def never_null(model_type: str) -> frozenset[str]:
    """The fields of a model, or of the language model in it, in which a null is no value."""
    by_class, by_model = _BY_THE_CLASS.get(model_type, ""), _BY_THE_MODEL.get(model_type, "")
    return frozenset(f"{by_class} {by_model}".split())


def never_null_around() -> frozenset[str]:
    """The fields beside a language model in which a null is no value."""
    return frozenset(_AROUND.split())
