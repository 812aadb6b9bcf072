"""Qwen3-MoE: Qwen3-235B, Qwen3-Coder and their kin, and the text part of Qwen3-VL with experts.

Source: vLLM 0.32, model_executor/models/qwen3_moe.py and qwen3_vl_moe.py.
"""

from __future__ import annotations

from vllm_layershard.models.blueprint import MAX_LAYERS, Blueprint, Segment
from vllm_layershard.models.families.activation import require_silu
from vllm_layershard.models.families.gqa import mlp_split, read_experts, read_gqa
from vllm_layershard.models.families.language_model import language_model_of, within
from vllm_layershard.models.families.window import window_of_all
from vllm_layershard.models.parts.feed_forward import GatedMlp, Router
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    if architecture == "Qwen3VLMoeForConditionalGeneration":
        # Source: vLLM 0.32, config/vllm.py, `VllmConfig.with_hf_config`.
        tied = config.boolean("tie_word_embeddings")
        return within(_read(language_model_of(config), whole=True), tied=tied)
    return _read(config, whole=False)


def _read(config: ConfigFile, *, whole: bool) -> Blueprint:
    require_silu(config)
    stated = config.get("head_dim") is not None
    sizes = read_gqa(config, ties=True, whole=whole and not stated)
    if config.optional_integer("shared_expert_intermediate_size", low=0):
        config.fail("shared_expert_intermediate_size", "is not known for this architecture")
    every = config.optional_integer("decoder_sparse_step", high=MAX_LAYERS) or 1
    dense = config.integers("mlp_only_layers")
    routed = tuple(i not in dense and (i + 1) % every == 0 for i in range(sizes.layers))
    bias = config.boolean("attention_bias")
    window = window_of_all(config, switched=True)
    attention = GroupedAttention(sizes.heads, window, qkv_bias=bias, qk_norm="head")
    mlp = GatedMlp("mlp", config.integer("intermediate_size"))
    experts = read_experts(config, "num_experts")
    router = Router("mlp.gate", experts.experts, quantisable=True, shares_out=True)
    return sizes.blueprint(
        (Segment(attention, (router if i else mlp,)) for i in routed),
        mlp_split(mlp, routed),
        experts,
    )
