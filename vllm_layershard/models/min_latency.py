"""The linears that vLLM computes with a kernel of its own, outside their quant method."""

from __future__ import annotations

from typing import Final

from vllm_layershard.plan import Linear

_SHAPE: Final = (2112, 7168)
"""DeepSeek-V3's and Kimi-K2's: a rank of 1,536 for queries, 512 + 64 for keys and values."""


def is_min_latency(linear: Linear) -> bool:
    """Whether vLLM's min-latency GEMM reads its weight, on Hopper and on Blackwell 10.x.

    The runtime refuses to shard it there. Source: vLLM 0.32, model_executor/models/deepseek_v2.py,
    `DeepSeekV2FusedQkvAProjLinear`.
    """
    weight = linear.tensors[0]
    kind = (weight.name, weight.dtype, weight.shape)
    return linear.is_named("fused_qkv_a_proj") and kind == ("weight", "bfloat16", _SHAPE)
