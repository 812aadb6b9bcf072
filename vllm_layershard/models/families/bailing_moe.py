"""Bailing: Ling-1T and its kin.

Source: vLLM 0.32, model_executor/models/bailing_moe.py.
"""

from __future__ import annotations

from vllm_layershard.models.blueprint import MAX_LAYERS
from vllm_layershard.models.families.gqa import GqaBlueprint, Router
from vllm_layershard.models.families.gqa_config import norm_if, read_gqa, read_moe
from vllm_layershard.models.sources.config_file import ConfigFile

_ROUTER_DTYPES = {None: None, "fp32": "float32", "bf16": "bfloat16"}


def build(architecture: str, config: ConfigFile) -> GqaBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    c = read_gqa(config)
    first = config.integer("first_k_dense_replace", low=0, high=MAX_LAYERS)
    moe = read_moe(config, tuple(i >= first for i in range(c.layers)), experts="num_experts")
    width = config.optional_integer("moe_shared_expert_intermediate_size") or moe.intermediate
    router_dtype = config.string("router_dtype")
    if router_dtype not in _ROUTER_DTYPES:
        config.fail("router_dtype", f"{router_dtype!r} is not one of fp32, bf16")
    bias = config.boolean("use_bias")
    if config.boolean("use_qk_norm") and not config.boolean("use_rmsnorm"):
        config.fail("use_rmsnorm", "is false, and the planner knows no other norm here")
    return GqaBlueprint(
        **c.common,
        heads=c.attention(
            name="attention",
            qkv="query_key_value",
            out="dense",
            qkv_bias=bias or config.boolean("use_qkv_bias"),
            out_bias=bias,
            qk_norm=norm_if(config.boolean("use_qk_norm")),
        ),
        intermediate=config.integer("intermediate_size"),
        mlp_bias=bias,
        moe=moe,
        router=Router(
            dtype=_ROUTER_DTYPES[router_dtype],
            correction_bias=config.boolean("moe_router_enable_expert_bias"),
        ),
        shared_intermediate=config.integer("num_shared_experts", low=0, high=1 << 10) * width,
    )
