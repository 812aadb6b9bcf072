"""gpt-oss.

Source: vLLM 0.32, model_executor/models/gpt_oss.py.
"""

from __future__ import annotations

from dataclasses import replace

from vllm_layershard.models.blueprint import Blueprint, Segment
from vllm_layershard.models.families.gqa import read_experts, read_gqa
from vllm_layershard.models.parts.feed_forward import Router
from vllm_layershard.models.parts.grouped import GroupedAttention
from vllm_layershard.models.sources.config_file import ConfigFile


def build(architecture: str, config: ConfigFile) -> Blueprint:
    """Read a model of this family.

    Raises:
        ModelError: its config.json is broken or inconsistent.
    """
    sizes = read_gqa(config, ties=False)
    window = config.integer("sliding_window", high=1 << 30)
    note = (
        f"every other layer looks back at {window:,} tokens and keeps no more of a sequence: long "
        "ones take as little as half of the bytes of a token"
    )
    full = GroupedAttention(
        sizes.heads,
        qkv="attn.qkv_proj",
        out="attn.o_proj",
        qkv_bias=True,
        out_bias=True,
        sinks=True,
    )
    width = config.integer("intermediate_size")
    experts = read_experts(config, "num_local_experts", intermediate=width, bias=True)
    router = Router("mlp.router", experts.experts, bias=True, shares_out=True)
    # vLLM alternates by the layer's parity, whatever layer_types says.
    both = (full._replace(window=window), full)
    read = sizes._replace(notes=(*sizes.notes, note)).blueprint(
        (Segment(both[i % 2], (router,)) for i in range(sizes.layers)),
        {},
        experts,
        repeats=False,  # `OAIAttention` divides its key-value heads, to none on more ranks
    )
    return replace(read, head_quantisable=False)
