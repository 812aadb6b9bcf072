"""Qwen3-Next and Qwen3.5's language model: gated delta nets in most layers, else full attention.

Source: vLLM 0.32, model_executor/models/qwen3_next.py and qwen3_5.py.
"""

from __future__ import annotations

from dataclasses import replace

from vllm_layershard.models.blueprint import MAX_LAYERS, Blueprint, Segment
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.families.activation import require_silu
from vllm_layershard.models.families.gqa import mlp_split, read_experts, read_gqa
from vllm_layershard.models.families.language_model import STEM, TEXT_ONLY, language_model_of
from vllm_layershard.models.parts.delta_net import DeltaNet
from vllm_layershard.models.parts.feed_forward import GatedMlp, Router
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile

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
        return _read(config, config, (_STATES,), fused=True)
    if architecture == "Qwen3_5MoeForCausalLM":
        return _read(config, config, (_STATES,), fused=False)
    text = language_model_of(config)
    return replace(_read(text, config, (TEXT_ONLY, _STATES), fused=False), stem=STEM)


def _read(
    config: ConfigFile, outer: ConfigFile, notes: tuple[str, ...], *, fused: bool
) -> Blueprint:
    require_silu(config)
    sizes = read_gqa(config)
    every = config.optional_integer("decoder_sparse_step", high=MAX_LAYERS) or 1
    dense = config.integers("mlp_only_layers", high=MAX_LAYERS)
    routed = tuple(i not in dense and (i + 1) % every == 0 for i in range(sizes.layers))
    if not fused:
        routed = (True,) * sizes.layers
    experts = read_experts(config, "num_experts")
    # Qwen3-Next's key would be ignored. Source: vLLM 0.32, model_executor/models/config.py.
    state_dtype = sizes.dtype if fused else config.string("mamba_ssm_dtype") or sizes.dtype
    if state_dtype not in DTYPE_BYTES:
        config.fail("mamba_ssm_dtype", f"{state_dtype!r} is not known")
    sizes = sizes._replace(tied=outer.boolean("tie_word_embeddings"), notes=(*sizes.notes, *notes))
    full = GroupedAttention(
        sizes.heads,
        qkv_bias=config.boolean("attention_bias"),
        qk_norm="head",
        gated=config.get("attn_output_gate") is not False,
    )
    mlp = GatedMlp("mlp", config.optional_integer("intermediate_size") or experts.intermediate)
    shared_width = config.integer("shared_expert_intermediate_size", low=0)
    shared = GatedMlp("mlp.shared_expert", shared_width, whole="always", weighed=True)
    router = Router("mlp.gate", experts.experts)
    net = _delta_net(config, fused, state_dtype)
    heads = {
        "linear_num_key_heads": net.key_heads,
        "linear_num_value_heads": net.value_heads,
    }
    return sizes.blueprint(
        (
            Segment(net if is_linear else full, (shared, router) if is_routed else (mlp,))
            for is_linear, is_routed in zip(
                _linear_layers(config, sizes.layers), routed, strict=True
            )
        ),
        mlp_split(mlp, routed, shared) | heads,
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
    if not kinds:
        every = config.integer("full_attention_interval", high=MAX_LAYERS)
        return tuple((i + 1) % every != 0 for i in range(layers))
    if len(kinds) != layers:
        config.fail("layer_types", f"names {len(kinds)} layers where there are {layers}")
    for kind in kinds:
        if kind not in ("linear_attention", "full_attention"):
            config.fail("layer_types", f"{kind!r} is not known for this architecture")
    return tuple(kind == "linear_attention" for kind in kinds)
