"""Ling-1T and its kin.

Source: vLLM 0.32, model_executor/models/bailing_moe.py.
"""

from __future__ import annotations

from vllm_layershard.models.blueprint import MAX_LAYERS, Blueprint, Segment
from vllm_layershard.models.families.gqa import mlp_split, norm_if, read_experts, read_gqa
from vllm_layershard.models.families.window import window_of_all
from vllm_layershard.models.parts.feed_forward import GatedMlp, Router
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile

_SHARED_WIDTH = "moe_shared_expert_intermediate_size"
_ROUTER_DTYPES = {None: None, "fp32": "float32", "bf16": "bfloat16"}


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    sizes = read_gqa(config, ties=True)
    first = config.integer("first_k_dense_replace", low=0, high=MAX_LAYERS)
    experts = read_experts(config, "num_experts")
    shared_experts = config.integer("num_shared_experts", low=0, high=1 << 10)
    width = experts.intermediate
    if shared_experts and _SHARED_WIDTH in config.values:
        width = config.integer(_SHARED_WIDTH)  # a null, too, is what vLLM would multiply
    router_dtype = config.string("router_dtype")
    if router_dtype not in _ROUTER_DTYPES:
        config.fail("router_dtype", f"{router_dtype!r} is not one of fp32, bf16")
    bias = config.boolean("use_bias")
    if config.boolean("use_qk_norm") and not config.boolean("use_rmsnorm"):
        config.fail("use_rmsnorm", "is false, and the planner knows no other norm here")
    attention = GroupedAttention(
        sizes.heads,
        window_of_all(config),
        qkv="attention.query_key_value",
        out="attention.dense",
        qkv_bias=bias or config.boolean("use_qkv_bias"),
        out_bias=bias,
        qk_norm=norm_if(config.boolean("use_qk_norm")),
    )
    mlp = GatedMlp("mlp", config.integer("intermediate_size"), bias=bias)
    router = Router(
        "mlp.gate",
        experts.experts,
        dtype=_ROUTER_DTYPES[router_dtype],
        correction_bias=config.boolean("moe_router_enable_expert_bias"),
    )
    shared = GatedMlp(
        "mlp.shared_experts", shared_experts * width, bias=bias, partial=True, shared_expert=True
    )
    routed = tuple(i >= first for i in range(sizes.layers))
    if bias and shared.intermediate and any(routed):
        # Source: vLLM 0.32, layers/linear.py, `RowParallelLinear`, which this MLP leaves unreduced.
        config.fail(
            "use_bias",
            "is true, and vLLM 0.32 builds no shared experts with a bias here; serve a checkpoint "
            "without it",
        )
    return sizes.blueprint(
        (Segment(attention, (shared, router) if i else (mlp,)) for i in routed),
        mlp_split(mlp, routed, shared),
        experts,
    )
