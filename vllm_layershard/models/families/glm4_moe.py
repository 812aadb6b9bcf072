"""GLM-4.5 to 4.7.

Source: vLLM 0.32, model_executor/models/glm4_moe.py.
"""

from __future__ import annotations

from dataclasses import replace

from vllm_layershard.models.blueprint import MAX_LAYERS, Blueprint, Drafts, Segment
from vllm_layershard.models.families.activation import require_silu
from vllm_layershard.models.families.gqa import mlp_split, norm_if, read_experts, read_gqa
from vllm_layershard.models.families.window import window_of_all
from vllm_layershard.models.parts.feed_forward import GatedMlp, Router
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    require_silu(config)
    sizes = read_gqa(config, ties=False)
    first = config.integer("first_k_dense_replace", low=0, high=MAX_LAYERS)
    experts = read_experts(config, "n_routed_experts")
    shared_experts = config.optional_integer("n_shared_experts", low=0, high=1 << 10) or 0
    attention = GroupedAttention(
        sizes.heads,
        window_of_all(config),
        qkv_bias=config.boolean("attention_bias"),
        qk_norm=norm_if(config.boolean("use_qk_norm")),
    )
    mlp = GatedMlp("mlp", config.integer("intermediate_size"))
    width = shared_experts * experts.intermediate
    shared = GatedMlp("mlp.shared_experts", width, partial=True, shared_expert=True)
    router = Router("mlp.gate", experts.experts, dtype="float32", correction_bias=True)
    routed = tuple(i >= first for i in range(sizes.layers))
    read = sizes.blueprint(
        (Segment(attention, (shared, router) if i else (mlp,)) for i in routed),
        mlp_split(mlp, routed, shared),
        experts,
    )
    count = config.optional_integer("num_nextn_predict_layers", low=0, high=MAX_LAYERS)
    if not count:
        return read
    return replace(read, drafts=Drafts(((Segment(attention, (shared, router)),),) * count))
