"""Mixtral.

Source: vLLM 0.32, model_executor/models/mixtral.py.
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
    sizes = read_gqa(config, ties=True)
    window = window_of_all(config)
    width = config.integer("intermediate_size")
    experts = read_experts(
        config, "num_local_experts", intermediate=width, name="block_sparse_moe.experts"
    )
    router = Router("block_sparse_moe.gate", experts.experts)
    segment = Segment(GroupedAttention(sizes.heads, window), (router,))
    return sizes.blueprint([segment] * sizes.layers, {}, experts)
