"""The work of one layer in one forward, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.layer_weights import layer_experts, layer_linears
from vllm_layershard.models.operation import Batch, Operation
from vllm_layershard.models.parts.attention import Work
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import Linear


def layer_operations(
    blueprint: Blueprint, layer_id: int, deployment: Deployment, batch: Batch
) -> tuple[Operation, ...]:
    """The work of one layer on one rank, in forward order.

    Every operation moves its weights once and its activations in and out; experts are chosen
    uniformly at random. An absorbed linear is part of the attention's operation.
    """
    b, tp = blueprint, deployment.layout.tp
    operations: list[Operation] = []
    segments = layer_linears(b, layer_id, deployment)
    for segment, linears in zip(b.layers[layer_id], segments, strict=True):
        for shape, linear in linears:
            if not shape.absorbed:
                tokens = -(-batch.tokens // tp) if shape.shared_out else batch.tokens
                operations.append(product(b, shape, linear, tokens))
            if shape.after == "attention":
                work = segment.attention.work(b.dtype, tp, batch)
                absorbed = [pair for pair in linears if pair[0].absorbed]
                operations.append(_attention(work, absorbed, batch))
            elif shape.after == "experts":
                operations.append(_routed(b, layer_id, deployment, batch))
    return tuple(operations)


def product(blueprint: Blueprint, shape: Shape, linear: Linear, tokens: float) -> Operation:
    """The matrix product of a linear: 2 x tokens x out x in."""
    return Operation(
        linear=linear.prefix,
        flops=2.0 * tokens * shape.rows * shape.inner,
        moved_bytes=linear.tensors[0].nbytes + 2.0 * tokens * (shape.rows + shape.inner),
        precision=blueprint.quantization.precision(linear.prefix, shape),
    )


def _attention(work: Work, absorbed: Sequence[tuple[Shape, Linear]], batch: Batch) -> Operation:
    """An attention with the linears that are absorbed in it."""
    products = sum(2.0 * batch.tokens * s.rows * s.inner for s, _ in absorbed)
    weights = sum(x.large_bytes for _, x in absorbed)
    return Operation("", work.flops + products, work.moved_bytes + weights, "bf16")


def _routed(blueprint: Blueprint, layer_id: int, deployment: Deployment, batch: Batch) -> Operation:
    """Routed experts, evenly loaded; all ranks' tokens together decide which are read."""
    b, experts, layout = blueprint, blueprint.experts, deployment.layout
    assert experts is not None, "a router comes with experts"
    # Prefill-context-parallel ranks share out a prompt, and all decode the same sequences.
    together = batch.tokens * layout.dp * (1 if batch.decode else layout.pcp)
    touched = 1.0 - (1.0 - experts.topk / experts.experts) ** together
    pairs = batch.tokens * experts.topk / layout.tp
    held = layer_experts(b, layer_id, deployment, rank=0)
    return Operation(
        linear="",
        flops=2.0 * pairs * 3 * b.hidden * experts.intermediate,
        moved_bytes=sum(t.nbytes for t in held) * touched + 2.0 * pairs * 2 * b.hidden,
        precision=b.quantization.experts_precision(b.experts_prefix(layer_id)),
    )
