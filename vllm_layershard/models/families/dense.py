"""Llama 3.1, Mistral, Qwen2 and Qwen3, and the text part of Qwen3-VL.

Source: vLLM 0.32, model_executor/models/llama.py, mistral.py, qwen2.py, qwen3.py and qwen3_vl.py.
"""

from __future__ import annotations

from typing import Final

from vllm_layershard.models.blueprint import Blueprint, Segment
from vllm_layershard.models.families.activation import require_silu
from vllm_layershard.models.families.gqa import norm_if, read_gqa
from vllm_layershard.models.families.language_model import language_model_of, within
from vllm_layershard.models.parts.feed_forward import GatedMlp
from vllm_layershard.models.parts.grouped import GroupedAttention, Heads
from vllm_layershard.models.sources.config_file import ConfigFile

_LLAMAS: Final = ("LlamaForCausalLM", "MistralForCausalLM", "Ministral3ForCausalLM")
"""Those whose layers are vLLM's `LlamaDecoderLayer`."""


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    if architecture == "Qwen3VLForConditionalGeneration":
        # Source: vLLM 0.32, config/vllm.py, `VllmConfig.with_hf_config`.
        tied = config.boolean("tie_word_embeddings")
        return within(_read("Qwen3ForCausalLM", language_model_of(config)), tied=tied)
    return _read(architecture, config)


def _read(architecture: str, config: ConfigFile) -> Blueprint:
    require_silu(config)
    if config.get("is_causal") is False:
        config.fail("is_causal", "is false: an encoder keeps no cache, and is not planned")
    sizes = read_gqa(config)
    llama, qwen2 = architecture in _LLAMAS, architecture == "Qwen2ForCausalLM"
    bias = config.boolean("attention_bias")
    for key in ("bias", "qkv_bias", "ada_rms_norm_t_cond"):
        if llama and config.get(key) not in (None, False):
            config.fail(key, "is not known to the planner for this architecture")
    if qwen2:
        sizes = sizes._replace(heads=_equal_heads(config, sizes.heads, sizes.hidden))
    attention = GroupedAttention(
        sizes.heads,
        qkv_bias=bias or qwen2,
        out_bias=bias and llama,
        qk_norm=norm_if(config.boolean("qk_norm") if qwen2 else not llama),
    )
    width = config.integer("intermediate_size")
    mlp = GatedMlp("mlp", width, bias=llama and config.boolean("mlp_bias"))
    return sizes.blueprint(
        (
            Segment(attention._replace(window=window), (mlp,))
            for window in _windows(architecture, config, sizes.layers)
        ),
        {"intermediate_size": width},
    )


def _equal_heads(config: ConfigFile, heads: Heads, hidden: int) -> Heads:
    """Qwen2's heads share out the model's width, whatever `head_dim` says.

    Source: vLLM 0.32, model_executor/models/qwen2.py, `Qwen2Attention`.
    """
    if hidden % heads.query:
        config.fail("num_attention_heads", f"{heads.query} does not divide hidden_size")
    return heads._replace(dim=hidden // heads.query)


def _windows(architecture: str, config: ConfigFile, layers: int) -> tuple[int | None, ...]:
    """The window of each layer by `layer_types`, or without them all layers' one."""
    if architecture not in _LLAMAS and not config.boolean("use_sliding_window"):
        return (None,) * layers
    kinds = config.strings("layer_types")
    if not kinds:
        return (_window(architecture, config),) * layers
    if len(kinds) != layers:
        config.fail("layer_types", f"names {len(kinds)} layers where there are {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            config.fail("layer_types", f"{kind!r} is not known for this architecture")
    if "sliding_attention" not in kinds:
        return (None,) * layers
    window = config.integer("sliding_window", high=1 << 30)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _window(architecture: str, config: ConfigFile) -> int | None:
    """The window of layers that `layer_types` does not tell apart; 0 is none.

    Source: vLLM 0.32, engine/arg_utils.py, `create_engine_config`; config/model.py.
    """
    if architecture not in _LLAMAS:
        return None
    return config.optional_integer("sliding_window", low=0, high=1 << 30) or None
