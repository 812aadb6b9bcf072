"""WeightBytes: what one rank holds after loading, without layer sharding."""

from __future__ import annotations

from typing import Final, NamedTuple

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
from vllm_layershard.plan import TensorSpec, stage_layers

VOCAB_PADDING: Final = 64
"""Source: vLLM 0.32, layers/vocab_parallel_embedding.py, `DEFAULT_VOCAB_PADDING_SIZE`."""


def padded_vocab(vocab: int) -> int:
    """The tokens of an embedding after padding."""
    return -(-vocab // VOCAB_PADDING) * VOCAB_PADDING


class WeightBytes(NamedTuple):
    """In bytes, by what holds them."""

    embedding: int
    head: int
    linears: int
    experts: int
    norms: int
    derived: int
    """What a host computes from the weights at load and keeps beside them: see `held_bytes`."""
    drafts: int = 0
    """Draft (MTP) layers; none where nobody asks for them."""

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def held_bytes(
    blueprint: Blueprint,
    deployment: Deployment,
    rank: int,
    *,
    drafting: bool,
    on_ascend: bool = False,
    mlapo: bool = False,
) -> WeightBytes:
    """Bytes of one global rank; with its draft layers where it is `drafting`.

    `derived`: what `absorbed_bytes` says, and with `mlapo` on Ascend the copies of
    `copied_linears`.

    Raises:
        PlanError: the quantisation's blocks would be split over ranks.
    """
    b, layout = blueprint, deployment.layout
    stage, last = layout.stage_of(rank), layout.pp - 1
    layers = stage_layers(len(b.layers), layout.pp)[stage]
    element = DTYPE_BYTES[b.dtype]
    vocab = padded_vocab(b.vocab) // layout.tp * b.hidden * element
    held = [
        pair
        for layer_id in layers
        for segment in layer_linears(b, layer_id, deployment)
        for pair in segment
    ]
    derived = sum(absorbed_bytes(b, i, deployment, on_ascend=on_ascend) for i in layers)
    transforms = b.quantization.transforms
    beside = 0
    if transforms is not None:
        beside = transforms.nbytes(((x.prefix, s) for s, x in held), b.dtype, layout.tp)
    drafts = 0
    if drafting:
        from vllm_layershard.models.draft_bytes import draft_bytes  # seldom asked for

        drafts, of_drafts = draft_bytes(b, deployment, rank, on_ascend=on_ascend, mlapo=mlapo)
        derived += of_drafts
    if on_ascend and mlapo:
        from vllm_layershard.models.quantization.mlapo import copied_bytes  # on Ascend alone

        derived += sum(copied_bytes(copied_linears(b, i, deployment)) for i in layers)
    return WeightBytes(
        embedding=vocab if stage == 0 or (b.tied and stage == last) else 0,
        head=_head_bytes(b, layout.tp) if stage == last else 0,
        linears=sum(x.nbytes for _, x in held) + beside,
        experts=sum(
            tensor.nbytes for i in layers for tensor in layer_experts(b, i, deployment, rank)
        ),
        norms=sum(
            vector.elements * DTYPE_BYTES[vector.dtype]
            for layer_id in layers
            for vector in b.vectors(layer_id, layout.tp)
        )
        + (b.hidden * element if stage == last else 0),
        derived=derived,
        drafts=drafts,
    )


def _head_bytes(blueprint: Blueprint, tp: int) -> int:
    """Of a tied head all but its weight, which is the embedding's.

    Source: vLLM 0.32, quantization/base_config.py, `QuantizeMethodBase.tie_weights`.
    """
    tensors = head_tensors(blueprint, tp)
    return sum(t.nbytes for t in tensors if not (blueprint.tied and t.name == "weight"))


def head_tensors(blueprint: Blueprint, tp: int) -> tuple[TensorSpec, ...]:
    """The tensors of the output head on one rank.

    Raises:
        PlanError: the format's blocks or groups would be split over two of `tp` ranks.
    """
    b = blueprint
    rows = (padded_vocab(b.vocab) // tp,)
    head = Shape("lm_head", rows, b.hidden, "out", quantisable=b.head_quantisable)
    return b.quantization.head(b.head, head, b.dtype, tp)
