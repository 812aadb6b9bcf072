"""Qwen3-MoE: Qwen3-235B, Qwen3-Coder and their kin.

Source: vLLM 0.32, model_executor/models/qwen3_moe.py.
"""

from __future__ import annotations

from vllm_layershard.models.blueprint import MAX_LAYERS
from vllm_layershard.models.families.gqa import GqaBlueprint, Router
from vllm_layershard.models.families.gqa_config import read_gqa, read_moe
from vllm_layershard.models.families.mlp import require_silu
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> GqaBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    require_silu(config)
    c = read_gqa(config)
    if config.optional_integer("shared_expert_intermediate_size", low=0):
        config.fail("shared_expert_intermediate_size", "is not known for this architecture")
    every = config.optional_integer("decoder_sparse_step", high=MAX_LAYERS) or 1
    dense = config.integers("mlp_only_layers", high=MAX_LAYERS)
    sparse = tuple(i not in dense and (i + 1) % every == 0 for i in range(c.layers))
    return GqaBlueprint(
        **c.common,
        heads=c.attention(qkv_bias=config.boolean("attention_bias"), qk_norm="head"),
        intermediate=config.integer("intermediate_size"),
        moe=read_moe(config, sparse, experts="num_experts"),
        router=Router(quantisable=True),
    )
