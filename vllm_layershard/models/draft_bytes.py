"""The weights of draft (MTP) layers, which vLLM loads beside the model on its last stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.layer_weights import (
    absorbed_bytes,
    copied_linears,
    layer_experts,
    layer_linears,
)
from vllm_layershard.models.shape import Shape

_HEAD: Final = Shape("head", (), 0, "out")


def draft_bytes(
    blueprint: Blueprint, deployment: Deployment, rank: int, *, on_ascend: bool, mlapo: bool
) -> tuple[int, int]:
    """Bytes of them on a global rank, and of what `held_bytes` calls derived.

    The embedding and the head are the model's own. A draft layer exchanges no tokens.
    Source: vLLM 0.32, deepseek_mtp.py, glm4_moe_mtp.py, qwen3_next_mtp.py, qwen3_5_mtp.py, and
    v1/spec_decode/llm_base_proposer.py, `_maybe_share_embeddings` and `_maybe_share_lm_head`.

    Raises:
        PlanError: the quantisation's blocks would be split over ranks.
        ModelError: a description of ModelSlim's does not name the head of a draft layer, which
            vLLM's class builds before it shares the model's.
    """
    drafts, layout = blueprint.drafts, deployment.layout
    if drafts is None or layout.stage_of(rank) != layout.pp - 1:
        return 0, 0
    if deployment.exchange:
        deployment = replace(deployment, exchange=())
    b, first = _of_drafts(blueprint)
    if b.quantization.name == "ascend_w8a8":
        for name in draft_heads(blueprint):
            b.quantization.format(name, _HEAD)  # for its refusal
    element = DTYPE_BYTES[b.dtype]
    total = derived = 0
    for layer_id in range(first, len(b.layers)):
        for segment in layer_linears(b, layer_id, deployment):
            total += sum(x.large_bytes + x.small_bytes for _, x in segment)
        derived += absorbed_bytes(b, layer_id, deployment, on_ascend=on_ascend)
        if on_ascend and mlapo:
            from vllm_layershard.models.quantization.mlapo import copied_bytes  # on Ascend alone

            derived += copied_bytes(copied_linears(b, layer_id, deployment))
        total += sum(t.nbytes for t in layer_experts(b, layer_id, deployment, rank))
        total += sum(v.elements * DTYPE_BYTES[v.dtype] for v in b.vectors(layer_id, layout.tp))
    norms = 3 * b.hidden * element
    if drafts.fused:
        return total + norms + _projection(b, layout.tp), derived
    return total + len(drafts.layers) * (norms + 2 * b.hidden * b.hidden * element), derived


def draft_heads(blueprint: Blueprint) -> Iterator[str]:
    """The names by which vLLM's class of draft layers asks for the formats of their heads.

    Source: vLLM 0.32, deepseek_mtp.py and glm4_moe_mtp.py, `SharedHead`; qwen3_next_mtp.py,
    qwen3_5_mtp.py.
    """
    drafts = blueprint.drafts
    assert drafts is not None, "it was asked"
    if not drafts.fused:
        first = len(blueprint.layers)
        yield from (f"{blueprint.stem}.{first + i}.head" for i in range(len(drafts.layers)))
    elif blueprint.head_quantisable:
        yield "lm_head"


_WIDE_FC: Final = ("modelopt_nvfp4", "modelopt_w4a16_nvfp4")
"""Source: vLLM 0.32, qwen3_5_mtp.py and qwen3_next_mtp.py, `fc_quant`: method modelopt_fp4."""


@lru_cache(maxsize=64)  # so that its layers are kept as a model's are
def _of_drafts(blueprint: Blueprint) -> tuple[Blueprint, int]:
    """A blueprint that has the draft layers, and the index of the first."""
    drafts = blueprint.drafts
    assert drafts is not None, "it was asked"
    if drafts.stem is not None:
        return replace(blueprint, layers=drafts.layers, stem=drafts.stem), 0
    layers = (*blueprint.layers, *drafts.layers)
    return replace(blueprint, layers=layers), len(blueprint.layers)


def _projection(b: Blueprint, tp: int) -> int:
    """`mtp.fc`, which vLLM's classes do not quantise in modelopt's NVFP4."""
    shape = Shape("fc", (b.hidden // tp,), 2 * b.hidden, "out")
    shape = shape._replace(quantisable=b.quantization.name not in _WIDE_FC)
    return sum(t.nbytes for t in b.quantization.tensors("mtp.fc", shape, b.dtype, tp))
