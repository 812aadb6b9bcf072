"""MiniMax-M2. Names are vLLM's: a checkpoint calls its MoE `block_sparse_moe`.

Source: vLLM 0.32, model_executor/models/minimax_m2.py.
"""

from __future__ import annotations

from vllm_layershard.models.families.gqa import GqaBlueprint, Router
from vllm_layershard.models.families.gqa_config import read_gqa, read_moe
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> GqaBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    c = read_gqa(config)
    return GqaBlueprint(
        **c.common,
        heads=c.attention(qkv_bias=config.boolean("attention_bias"), qk_norm="all"),
        intermediate=config.integer("intermediate_size"),
        moe=read_moe(
            config,
            (True,) * c.layers,
            experts="num_local_experts",
            intermediate="intermediate_size",
        ),
        router=Router(
            dtype="float32",
            correction_bias=config.boolean("use_routing_bias"),
        ),
    )
