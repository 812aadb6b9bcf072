"""The copies that vllm-ascend's fused preprocessing of MLA (MLAPO) keeps of two linears."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vllm_layershard.plan import Linear

COPIED: Final = ("fused_qkv_a_proj", "q_b_proj")

_STATIC: Final = "deq_scale"
"""The tensor that static W8A8 alone has."""

_BESIDE: Final = (_STATIC, "quant_bias")

_TILE: Final = (16, 32)
"""Rows and columns to which a copy is padded: its format is FRACTAL_NZ."""


def mlapo_copies(linears: Iterable[Linear]) -> tuple[Linear, ...]:
    """Of one attention's linears those that it copies; none where queries are not static W8A8.

    Sparse MLA does so on every instance, as long as `VLLM_ASCEND_ENABLE_MLAPO` is not 0. Dense MLA
    does so on instances that take their cache from another alone. The linears themselves stay,
    for prefills and for decodes of more than 1,024 tokens.
    Source: vllm-ascend 182b75ea84, attention/sfa_v1.py, `_resolve_preprocess_type` and
    `_process_weights_for_fused_mlapo`; attention/utils.py, `enabling_mlapo`; envs.py.
    """
    found = {name: x for x in linears for name in COPIED if x.is_named(name)}
    fused = found.get(COPIED[0])
    if fused is None or all(tensor.name != _STATIC for tensor in fused.tensors):
        return ()
    return tuple(found.values())


def copied_bytes(copied: Iterable[Linear]) -> int:
    """Bytes of the copies, which are of the weights, their scales and their biases."""
    total = 0
    for linear in copied:
        rows, inner = (
            -(-size // tile) * tile
            for size, tile in zip(linear.tensors[0].shape, _TILE, strict=True)
        )
        total += rows * inner
        total += sum(tensor.nbytes for tensor in linear.tensors if tensor.name in _BESIDE)
    return total
