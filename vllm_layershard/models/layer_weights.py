"""The linears and the routed experts of one layer, as one rank holds them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from vllm_layershard.models.blueprint import Blueprint, Segment
from vllm_layershard.models.cache.kv_cache import LatentCache
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import Linear, TensorSpec


@lru_cache(maxsize=1 << 10)  # most layers of a model are alike
def _shapes(segment: Segment, hidden: int, deployment: Deployment) -> tuple[Shape, ...]:
    """The linears of a segment."""
    return tuple(segment.shapes(hidden, deployment))


@lru_cache(maxsize=1 << 13)  # a forecast asks for the same layers again and again
def layer_linears(
    blueprint: Blueprint, layer_id: int, deployment: Deployment
) -> tuple[tuple[tuple[Shape, Linear], ...], ...]:
    """The linears of each segment of one layer on one rank, each with its shape.

    Raises:
        PlanError: the quantisation's blocks would be split over ranks.
    """
    b, tp = blueprint, deployment.layout.tp
    found = []
    for segment in b.layers[layer_id]:
        pairs = []
        for shape in _shapes(segment, b.hidden, deployment):
            prefix = f"{b.stem}.{layer_id}.{shape.suffix}"
            if deployment.exchange and _is_exchanged(prefix, shape, deployment):
                shape = shape.exchanged(tp)
            linear = Linear(
                prefix=prefix,
                layer_id=layer_id,
                tp_replicated=tp == 1 or shape.split == "none",
                tensors=b.quantization.tensors(prefix, shape, b.dtype, tp),
            )
            pairs.append((shape, linear))
        found.append(tuple(pairs))
    return tuple(found)


def _is_exchanged(prefix: str, shape: Shape, deployment: Deployment) -> bool:
    return shape.split == "in" and any(
        f".{prefix}".endswith(f".{name}") for name in deployment.exchange
    )


def dense_linears(
    blueprint: Blueprint, layer_id: int, deployment: Deployment
) -> Iterator[tuple[Shape, Linear]]:
    """Those of a layer's gated MLPs, unsplit, each with its shape; none beside routed experts."""
    if blueprint.is_routed(layer_id):
        return
    segments = zip(
        blueprint.layers[layer_id], layer_linears(blueprint, layer_id, deployment), strict=True
    )
    for segment, pairs in segments:
        names = {s.suffix for mlp in segment.mlps for s in mlp.shapes(blueprint.hidden, deployment)}
        yield from (pair for pair in pairs if pair[0].suffix in names)


def absorbed_bytes(
    blueprint: Blueprint, layer_id: int, deployment: Deployment, *, on_ascend: bool
) -> int:
    """Bytes of W_UK and W_UV, as far as one layer's MLA keeps them beside `kv_b_proj`.

    They are views of an unquantised one and a dequantised copy of a quantised one. On Ascend they
    are copies always; sparse attention frees the linear instead, so that the bytes are the same.
    Source: vLLM 0.32, mla_attention.py, `MLAAttention.process_weights_after_loading`; vllm-ascend
    182b75e, attention/mla_v1.py and sfa_v1.py, `process_weights_after_loading`.
    """
    b = blueprint
    total = 0
    layer = layer_linears(b, layer_id, deployment)
    for segment, pairs in zip(b.layers[layer_id], layer, strict=True):
        for shape, linear in pairs:
            if shape.absorbed and (
                len(linear.tensors) > 1 or (on_ascend and not _is_sparse(segment, b.dtype))
            ):
                total += shape.rows * shape.inner * DTYPE_BYTES[b.dtype]
    return total


def _is_sparse(segment: Segment, dtype: str) -> bool:
    cache = segment.attention.cache(dtype, tp=1)
    return isinstance(cache, LatentCache) and cache.sparse


def copied_linears(blueprint: Blueprint, layer_id: int, deployment: Deployment) -> Iterator[Linear]:
    """Those of one layer that vllm-ascend's sparse attention keeps whole copies of."""
    from vllm_layershard.models.quantization.mlapo import mlapo_copies  # on Ascend alone

    segments = zip(
        blueprint.layers[layer_id], layer_linears(blueprint, layer_id, deployment), strict=True
    )
    for segment, pairs in segments:
        if _is_sparse(segment, blueprint.dtype):
            yield from mlapo_copies(linear for _, linear in pairs)


def layer_experts(
    blueprint: Blueprint, layer_id: int, deployment: Deployment, rank: int
) -> tuple[TensorSpec, ...]:
    """The routed experts of one layer on a global rank; none in a dense layer.

    Raises:
        PlanError: the quantisation's blocks would be split over ranks.
    """
    b, experts = blueprint, blueprint.experts
    if experts is None or not b.is_routed(layer_id):
        return ()
    count, intermediate = experts.on_rank(deployment, rank)
    prefix = b.experts_prefix(layer_id)
    return b.quantization.experts(prefix, count, b.hidden, intermediate, experts.bias, b.dtype)
