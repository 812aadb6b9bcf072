"""Llama 3.1 and Qwen3.

Source: vLLM 0.32, model_executor/models/llama.py and qwen3.py.
"""

from __future__ import annotations

from vllm_layershard.models.blueprint import Blueprint, Segment
from vllm_layershard.models.families.activation import require_silu
from vllm_layershard.models.families.gqa import read_gqa
from vllm_layershard.models.parts.feed_forward import GatedMlp
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    require_silu(config)
    sizes = read_gqa(config)
    bias = config.boolean("attention_bias")
    llama = architecture == "LlamaForCausalLM"
    if llama and (config.get("bias") is not None or config.get("qkv_bias") is not None):
        config.fail("bias", "biases of this kind are not known to the planner")
    windows: tuple[int | None, ...] = (None,) * sizes.layers
    if llama or config.boolean("use_sliding_window"):
        windows = _windows(config, sizes.layers)
    attention = GroupedAttention(
        sizes.heads,
        qkv_bias=bias,
        out_bias=bias and llama,
        qk_norm="none" if llama else "head",
    )
    width = config.integer("intermediate_size")
    mlp = GatedMlp("mlp", width, bias=llama and config.boolean("mlp_bias"))
    return sizes.blueprint(
        (Segment(attention._replace(window=window), (mlp,)) for window in windows),
        {"intermediate_size": width},
    )


def _windows(config: ConfigFile, layers: int) -> tuple[int | None, ...]:
    """The window of each layer by `layer_types`; all full where there are none."""
    kinds = config.strings("layer_types")
    if not kinds:
        return (None,) * layers
    if len(kinds) != layers:
        config.fail("layer_types", f"names {len(kinds)} layers where there are {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            config.fail("layer_types", f"{kind!r} is not known for this architecture")
    if "sliding_attention" not in kinds:
        return (None,) * layers
    window = config.integer("sliding_window", high=1 << 30)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
