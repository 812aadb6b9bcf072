"""MiniMax-M2. Names are vLLM's: a checkpoint calls its MoE `block_sparse_moe`.

Source: vLLM 0.32, model_executor/models/minimax_m2.py.
"""

from __future__ import annotations

from vllm_layershard.models.blueprint import Blueprint, Segment
from vllm_layershard.models.families.gqa import read_experts, read_gqa
from vllm_layershard.models.families.window import window_of_all
from vllm_layershard.models.parts.feed_forward import Router
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    sizes = read_gqa(config, ties=False)
    bias = config.boolean("attention_bias")
    width = config.integer("intermediate_size")
    experts = read_experts(config, "num_local_experts", intermediate=width)
    router = Router(
        "mlp.gate",
        experts.experts,
        dtype="float32",
        correction_bias=config.boolean("use_routing_bias"),
    )
    window = window_of_all(config)
    attention = GroupedAttention(sizes.heads, window, qkv_bias=bias, qk_norm="all")
    segment = Segment(attention, (router,))
    return sizes.blueprint([segment] * sizes.layers, {}, experts)
