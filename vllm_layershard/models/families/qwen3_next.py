"""Qwen3-Next and Qwen3.5's language model: readers for `hybrid.HybridBlueprint`."""

from __future__ import annotations

from dataclasses import replace

from vllm_layershard.models.blueprint import MAX_LAYERS
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.families.gqa import GqaBlueprint
from vllm_layershard.models.families.gqa_config import read_gqa, read_moe
from vllm_layershard.models.families.hybrid import DeltaNet, HybridBlueprint
from vllm_layershard.models.families.language_model import STEM, TEXT_ONLY, language_model_of
from vllm_layershard.models.families.mlp import require_silu
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> HybridBlueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    if architecture == "Qwen3NextForCausalLM":
        return _read(config, config, fused=True)
    if architecture == "Qwen3_5MoeForCausalLM":
        return _read(config, config, fused=False)
    language_model = _read(language_model_of(config), config, fused=False)
    full = language_model.full
    notes = (*full.notes, TEXT_ONLY)
    return replace(language_model, full=replace(full, stem=STEM, notes=notes))


def _read(config: ConfigFile, outer: ConfigFile, *, fused: bool) -> HybridBlueprint:
    require_silu(config)
    c = read_gqa(config)
    every = config.optional_integer("decoder_sparse_step", high=MAX_LAYERS) or 1
    dense = config.integers("mlp_only_layers", high=MAX_LAYERS)
    sparse = tuple(i not in dense and (i + 1) % every == 0 for i in range(c.layers))
    if not fused:
        sparse = (True,) * c.layers
    moe = read_moe(config, sparse, experts="num_experts")
    # Qwen3-Next's key would be ignored. Source: vLLM 0.32, model_executor/models/config.py.
    state_dtype = c.dtype if fused else config.string("mamba_ssm_dtype") or c.dtype
    if state_dtype not in DTYPE_BYTES:
        config.fail("mamba_ssm_dtype", f"{state_dtype!r} is not known")
    full = GqaBlueprint(
        **c.common
        | {
            "tied": outer.boolean("tie_word_embeddings"),
        },
        heads=c.attention(
            qkv_bias=config.boolean("attention_bias"),
            qk_norm="head",
            gated=config.get("attn_output_gate") is not False,
        ),
        intermediate=config.optional_integer("intermediate_size") or moe.intermediate,
        moe=moe,
        shared_intermediate=config.integer("shared_expert_intermediate_size", low=0),
        shared_name="shared_expert",
        shared_gate=True,
        shared_whole=True,
    )
    net = DeltaNet(
        key_heads=config.integer("linear_num_key_heads", high=1 << 14),
        key_dim=config.integer("linear_key_head_dim", high=1 << 14),
        value_heads=config.integer("linear_num_value_heads", high=1 << 14),
        value_dim=config.integer("linear_value_head_dim", high=1 << 14),
        kernel=config.integer("linear_conv_kernel_dim", high=1 << 10),
        fused=fused,
        state_dtype=state_dtype,
    )
    return HybridBlueprint(full=full, net=net, is_linear=_linear_layers(config, c.layers))


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
