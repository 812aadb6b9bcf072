"""Llama 3.1, Mistral, Qwen2 and Qwen3, and the text part of Qwen3-VL.

Source: vLLM 0.32, model_executor/models/llama.py, mistral.py, qwen2.py, qwen3.py and qwen3_vl.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vllm_layershard.models.blueprint import Blueprint, Segment
from vllm_layershard.models.families.activation import require_decoder, require_silu
from vllm_layershard.models.families.gqa import norm_if, read_gqa
from vllm_layershard.models.families.language_model import language_model_of, within
from vllm_layershard.models.parts.feed_forward import GatedMlp
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile

_LLAMAS: Final = ("LlamaForCausalLM", "MistralForCausalLM", "Ministral3ForCausalLM")
"""Those whose layers are vLLM's `LlamaDecoderLayer`."""

_SWITCHED: Final = ("qwen2", "qwen3")
"""Model types whose windows `use_sliding_window` switches on, from `max_window_layers` on."""


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    if architecture == "Qwen3VLForConditionalGeneration":
        # Source: vLLM 0.32, config/vllm.py, `VllmConfig.with_hf_config`.
        tied = config.boolean("tie_word_embeddings")
        read = within(_read("Qwen3ForCausalLM", language_model_of(config)), tied=tied)
        return replace(read, head_name="lm_head")  # vLLM's class drops the model's own name
    return _read(architecture, config)


def _read(architecture: str, config: ConfigFile) -> Blueprint:
    require_silu(config)
    require_decoder(config)
    # Llama's config class refuses heads that do not share out the width, whatever head_dim says.
    sizes = read_gqa(config, ties=True, whole=config.get("model_type") == "llama")
    llama, qwen2 = architecture in _LLAMAS, architecture == "Qwen2ForCausalLM"
    if llama and config.get("ada_rms_norm_t_cond") not in (None, False):
        config.fail("ada_rms_norm_t_cond", "is not known to the planner for this architecture")
    if qwen2:  # Its heads share out the model's width, whatever head_dim says.
        heads = sizes.heads._replace(dim=max(sizes.hidden // sizes.heads.query, 1))
        sizes = sizes._replace(heads=heads)
    qkv_bias, out_bias = _biases(config) if llama else (config.boolean("attention_bias"), False)
    attention = GroupedAttention(
        sizes.heads,
        qkv_bias=qkv_bias or qwen2,
        out_bias=out_bias,
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


def _biases(config: ConfigFile) -> tuple[bool, bool]:
    """Whether a Llama's attention has a bias before it, and one behind it.

    Source: vLLM 0.32, model_executor/models/llama.py, `LlamaDecoderLayer`.
    """
    both = config.boolean("attention_bias") or config.boolean("bias")
    return config.boolean("qkv_bias") if "qkv_bias" in config.values else both, both


def _windows(architecture: str, config: ConfigFile, layers: int) -> tuple[int | None, ...]:
    """The window of each layer.

    Source: vLLM 0.32, engine/arg_utils.py, `create_engine_config`; config/model.py.

    Raises:
        ModelError: names the key; vLLM runs no Qwen of which a part of the layers has a window.
    """
    llama, switched = architecture in _LLAMAS, config.get("model_type") in _SWITCHED
    window = None
    if not switched or config.boolean("use_sliding_window"):
        window = config.optional_integer("sliding_window", low=0, high=1 << 30)
    kinds = _kinds(config, layers)
    if kinds is None:
        by_switch = switched and window is not None
        first = config.integer("max_window_layers", low=0) if by_switch else 0
        kinds = tuple(window is not None and i >= first for i in range(layers))
    if llama and any(kinds) and window is None:
        config.fail("sliding_window", "is missing, and layer_types names sliding layers")
    if llama or len(set(kinds)) == 1:
        return tuple(window or None if slides else None for slides in kinds)  # 0 is none, too.
    if config.get("max_window_layers") != layers:
        # Source: vLLM 0.32, model_executor/models/qwen2.py, `Qwen2Model`.
        config.fail(
            "max_window_layers" if config.get("layer_types") is None else "layer_types",
            f"a part of the {layers} layers has a sliding window, and vLLM does not run this "
            "architecture so; give all layers one, or none",
        )
    return (None,) * layers


def _kinds(config: ConfigFile, layers: int) -> tuple[bool, ...] | None:
    """Whether each layer has a window by `layer_types`; None without them.

    Raises:
        ModelError: they are of other kinds, or not as many as there are layers.
    """
    if config.get("layer_types") is None:
        return None
    kinds = config.strings("layer_types")
    if len(kinds) != layers:
        config.fail("layer_types", f"names {len(kinds)} layers where there are {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            config.fail("layer_types", f"{kind!r} is not known for this architecture")
    return tuple(kind == "sliding_attention" for kind in kinds)
