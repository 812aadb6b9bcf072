"""MlaConfig: the sizes of a DeepSeek-style model, checked."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.models.blueprint import MAX_EXPERTS, MAX_LAYERS, Moe
from vllm_layershard.models.dtypes import dtype_of
from vllm_layershard.models.families.mlp import require_silu
from vllm_layershard.models.quantization import Quantization, quantization_of
from vllm_layershard.models.sources.config_file import ConfigFile


class Indexer(NamedTuple):
    """The sparse-attention indexer (DSA): `layers` says which layers have one of their own."""

    heads: int
    dim: int
    topk: int
    layers: tuple[bool, ...]


class MlaConfig(NamedTuple):
    """Sizes in elements, named as in config.json without the common words."""

    layers: int
    hidden: int
    intermediate: int
    vocab: int
    heads: int
    q_lora: int | None
    kv_lora: int
    nope: int
    rope: int
    v: int
    moe: Moe | None
    shared_experts: int
    correction_bias: bool
    indexer: Indexer | None
    dtype: str
    quantization: Quantization
    notes: tuple[str, ...]


def read_mla(config: ConfigFile) -> MlaConfig:
    """Check every size that the plan needs.

    Raises:
        ModelError: names the file, the key and what is wrong with it.
    """
    layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    require_silu(config)
    dtype, notes = dtype_of(config)
    q_lora = config.optional_integer("q_lora_rank")
    indexer = _indexer(config, layers)
    if indexer is not None and q_lora is None:
        config.fail("q_lora_rank", "is missing; a model with index_topk needs it")
    return MlaConfig(
        layers=layers,
        hidden=config.integer("hidden_size"),
        intermediate=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size", high=1 << 26),
        heads=config.integer("num_attention_heads", high=1 << 14),
        q_lora=q_lora,
        kv_lora=config.integer("kv_lora_rank", high=1 << 16),
        nope=config.integer("qk_nope_head_dim", high=1 << 14),
        rope=config.integer("qk_rope_head_dim", high=1 << 14),
        v=config.integer("v_head_dim", high=1 << 14),
        moe=_moe(config, layers),
        shared_experts=config.optional_integer("n_shared_experts", low=0, high=1 << 10) or 0,
        correction_bias=config.string("topk_method") == "noaux_tc",
        indexer=indexer,
        dtype=dtype,
        quantization=quantization_of(config),
        notes=notes,
    )


def _moe(config: ConfigFile, layers: int) -> Moe | None:
    """Source: vLLM 0.32, models/deepseek_v2.py, `DeepseekV2DecoderLayer`, `DeepseekV2MoE`."""
    experts = config.optional_integer("n_routed_experts", high=MAX_EXPERTS)
    if experts is None:
        return None
    first = config.integer("first_k_dense_replace", low=0, high=MAX_LAYERS)
    every = config.optional_integer("moe_layer_freq", high=MAX_LAYERS) or 1
    return Moe(
        experts=experts,
        topk=config.integer("num_experts_per_tok", high=experts),
        intermediate=config.integer("moe_intermediate_size"),
        layers=tuple(i >= first and i % every == 0 for i in range(layers)),
    )


def _indexer(config: ConfigFile, layers: int) -> Indexer | None:
    """Source: vLLM 0.32, models/deepseek_v2.py, `DeepseekV2MLAAttention` (`_skip_topk`)."""
    topk = config.optional_integer("index_topk")
    if topk is None:
        return None
    every = config.optional_integer("index_topk_freq", high=MAX_LAYERS) or 1
    offset = config.optional_integer("index_skip_topk_offset", low=0, high=MAX_LAYERS)
    offset = 2 if offset is None else offset
    pattern = config.get("index_topk_pattern")
    if pattern is not None and not isinstance(pattern, (str, list)):
        config.fail("index_topk_pattern", "is neither a string nor a list")
    has = [max(i - offset + 1, 0) % every == 0 for i in range(layers)]
    if pattern is not None:
        has = [i >= len(pattern) or pattern[i] != "S" for i in range(layers)]
    return Indexer(
        heads=config.integer("index_n_heads", high=1 << 12),
        dim=config.integer("index_head_dim", high=1 << 12),
        topk=topk,
        layers=tuple(has),
    )
