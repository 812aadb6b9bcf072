"""Qwen3-Next, and the language model of Qwen3.5 and its kin, dense or with experts.

Gated delta nets are in most layers, full attention in the others.
Source: vLLM 0.32, model_executor/models/qwen3_next.py and qwen3_5.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from vllm_layershard.models.blueprint import MAX_LAYERS, Blueprint, Drafts, Segment
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.families.activation import require_decoder, require_silu
from vllm_layershard.models.families.gqa import mlp_split, read_experts, read_gqa
from vllm_layershard.models.families.language_model import language_model_of, within
from vllm_layershard.models.parts.delta_net import DeltaNet
from vllm_layershard.models.parts.experts import Experts
from vllm_layershard.models.parts.feed_forward import FeedForward, GatedMlp, Router
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_STATES = (
    "the layers with linear attention keep a state of every sequence too, and vLLM pads both "
    "caches to pages of one size: a server holds fewer tokens than bytes over bytes a token"
)


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    if architecture == "Qwen3NextForCausalLM":
        read = _read(config, fused=True, has_experts=True)
        return _noted(replace(read, head_quantisable=False))
    has_experts = architecture.startswith("Qwen3_5Moe")
    if architecture.endswith("ForCausalLM"):
        return _noted(_read(config, fused=False, has_experts=has_experts))
    read = _read(language_model_of(config), fused=False, has_experts=has_experts)
    return _noted(within(read, tied=read.tied))  # Not what stands beside text_config.


def _noted(read: Blueprint) -> Blueprint:
    return replace(read, notes=(*read.notes, _STATES))


def _read(config: ConfigFile, *, fused: bool, has_experts: bool) -> Blueprint:
    require_silu(config)
    require_decoder(config)
    sizes = read_gqa(config, ties=not fused)
    # Qwen3-Next's key would be ignored. Source: vLLM 0.32, model_executor/models/config.py.
    state_dtype = sizes.dtype if fused else config.string("mamba_ssm_dtype") or sizes.dtype
    if state_dtype not in DTYPE_BYTES:
        config.fail("mamba_ssm_dtype", f"{state_dtype!r} is not known")
    full = GroupedAttention(
        sizes.heads,
        qkv_bias=config.boolean("qkv_bias"),  # vLLM's class does not read attention_bias
        qk_norm="head",
        gated=_is_gated(config),
    )
    net = _delta_net(config, fused, state_dtype)
    mlps = _mlps(config, sizes.layers, fused) if has_experts else _dense(config, sizes.layers)
    is_linear = _linear_layers(config, sizes.layers)
    read = sizes.blueprint(
        (
            Segment(net if linear else full, of_layer)
            for linear, of_layer in zip(is_linear, mlps.of_each_layer, strict=True)
        ),
        mlps.split
        | {"linear_num_key_heads": net.key_heads, "linear_num_value_heads": net.value_heads},
        mlps.experts,
    )
    key = "num_nextn_predict_layers" if fused else "mtp_num_hidden_layers"
    count = config.optional_integer(key, low=0, high=MAX_LAYERS) or 0
    last = (Segment(full, mlps.of_drafts),)
    return replace(
        read,
        longest=config.optional_integer("max_position_embeddings", high=1 << 30),
        drafts=Drafts((last,) * (count if key in config.values else 1), "mtp.layers", fused=True),
    )


def _is_gated(config: ConfigFile) -> bool:
    """Whether the attention's output has a gate. Source: qwen3_next.py, `Qwen3NextAttention`."""
    gated = config.values.get("attn_output_gate", True)
    if not isinstance(gated, bool):
        config.fail(
            "attn_output_gate",
            f"{shown(gated)} is neither true nor false, and vLLM 0.32 calculates with it",
        )
    return gated


class _Mlps(NamedTuple):
    """What follows each layer's attention, and the widths that tensor parallelism splits."""

    of_each_layer: tuple[tuple[FeedForward, ...], ...]
    of_drafts: tuple[FeedForward, ...]
    split: dict[str, int]
    experts: Experts | None


def _dense(config: ConfigFile, layers: int) -> _Mlps:
    """A dense MLP in every layer, whatever `mlp_only_layers` says."""
    mlp = GatedMlp("mlp", config.integer("intermediate_size"))
    return _Mlps(((mlp,),) * layers, (mlp,), mlp_split(mlp, (False,) * layers), None)


def _mlps(config: ConfigFile, layers: int, fused: bool) -> _Mlps:
    """Routed experts and a shared one; Qwen3-Next may have dense layers, Qwen3.5 has none."""
    every = config.optional_integer("decoder_sparse_step", high=MAX_LAYERS) or 1
    dense = config.integers("mlp_only_layers")
    routed = tuple(not fused or (i not in dense and (i + 1) % every == 0) for i in range(layers))
    experts = read_experts(config, "num_experts")
    mlp = GatedMlp("mlp", config.optional_integer("intermediate_size") or experts.intermediate)
    width = config.integer("shared_expert_intermediate_size", low=0)
    shared = GatedMlp(
        "mlp.shared_expert", width, whole="always", weighed=True, partial=True, shared_expert=True
    )
    router = Router("mlp.gate", experts.experts, shares_out=True)
    return _Mlps(
        tuple((shared, router) if is_routed else (mlp,) for is_routed in routed),
        (shared, router),
        mlp_split(mlp, routed, shared),
        experts,
    )


def _delta_net(config: ConfigFile, fused: bool, state_dtype: str) -> DeltaNet:
    return DeltaNet(
        key_heads=config.integer("linear_num_key_heads", high=1 << 14),
        key_dim=config.integer("linear_key_head_dim", high=1 << 14),
        value_heads=config.integer("linear_num_value_heads", high=1 << 14),
        value_dim=config.integer("linear_value_head_dim", high=1 << 14),
        kernel=config.integer("linear_conv_kernel_dim", high=1 << 10),
        fused=fused,
        state_dtype=state_dtype,
    )


def _linear_layers(config: ConfigFile, layers: int) -> tuple[bool, ...]:
    """By `layer_types`, or else every layer but each `full_attention_interval`-th."""
    kinds = config.strings("layer_types")
    if config.get("layer_types") is None:
        every = config.integer("full_attention_interval", high=MAX_LAYERS)
        return tuple((i + 1) % every != 0 for i in range(layers))
    if len(kinds) != layers:
        config.fail("layer_types", f"names {len(kinds)} layers where there are {layers}")
    for kind in kinds:
        if kind not in ("linear_attention", "full_attention"):
            config.fail("layer_types", f"{kind!r} is not known for this architecture")
    return tuple(kind == "linear_attention" for kind in kinds)
