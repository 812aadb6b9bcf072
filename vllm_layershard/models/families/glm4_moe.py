"""GLM-4.5 to 4.7.

Source: vLLM 0.32, model_executor/models/glm4_moe.py.
"""

from __future__ import annotations

from vllm_layershard.models.blueprint import MAX_LAYERS
from vllm_layershard.models.families.gqa import GqaBlueprint, Router
from vllm_layershard.models.families.gqa_config import norm_if, read_gqa, read_moe
from vllm_layershard.models.families.mlp import require_silu
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> GqaBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    require_silu(config)
    c = read_gqa(config)
    first = config.integer("first_k_dense_replace", low=0, high=MAX_LAYERS)
    moe = read_moe(config, tuple(i >= first for i in range(c.layers)), experts="n_routed_experts")
    shared = config.optional_integer("n_shared_experts", low=0, high=1 << 10) or 0
    return GqaBlueprint(
        **c.common,
        heads=c.attention(
            qkv_bias=config.boolean("attention_bias"),
            qk_norm=norm_if(config.boolean("use_qk_norm")),
        ),
        intermediate=config.integer("intermediate_size"),
        moe=moe,
        router=Router(dtype="float32", correction_bias=True),
        shared_intermediate=shared * moe.intermediate,
    )
