"""LayerOperations: the work of one layer in one forward, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_layershard.models.blueprint import Blueprint
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.layer_weights import layer_experts, layer_linears
from vllm_layershard.models.operation import Batch, Operation
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import Linear


def layer_operations(
    blueprint: Blueprint, layer_id: int, deployment: Deployment, batch: Batch
) -> tuple[Operation, ...]:
    """The work of one layer on one rank, in forward order.

    Every operation moves its weights once and its activations in and out; experts are chosen
    uniformly at random. An absorbed linear is part of the attention's operation.
    """
    operations: list[Operation] = []
    absorbed: list[tuple[Shape, Linear]] = []
    for shape, linear in layer_linears(blueprint, layer_id, deployment):
        if shape.absorbed:
            absorbed.append((shape, linear))
        else:
            whole = shape.split == "none" and ".mlp." in linear.prefix
            tokens = batch.tokens / deployment.layout.tp if whole else batch.tokens
            operations.append(_product(blueprint, shape, linear, tokens))
        if shape.after == "attention":
            operations.append(_attention(blueprint, layer_id, deployment, batch, absorbed))
            absorbed = []
        elif shape.after == "experts":
            operations.append(_routed(blueprint, layer_id, deployment, batch))
    return tuple(operations)


def _product(blueprint: Blueprint, shape: Shape, linear: Linear, tokens: float) -> Operation:
    """The matrix product of a linear: 2 x tokens x out x in."""
    return Operation(
        linear=linear.prefix,
        flops=2.0 * tokens * shape.rows * shape.inner,
        moved_bytes=linear.tensors[0].nbytes + 2.0 * tokens * (shape.rows + shape.inner),
        precision=blueprint.quantization.precision(linear.tensors),
    )


def _attention(
    blueprint: Blueprint,
    layer_id: int,
    deployment: Deployment,
    batch: Batch,
    absorbed: Sequence[tuple[Shape, Linear]],
) -> Operation:
    work = blueprint.attention(layer_id, deployment, batch)
    products = sum(2.0 * batch.tokens * s.rows * s.inner for s, _ in absorbed)
    weights = sum(x.large_bytes for _, x in absorbed)
    return Operation("", work.flops + products, work.moved_bytes + weights, "bf16")


def _routed(blueprint: Blueprint, layer_id: int, deployment: Deployment, batch: Batch) -> Operation:
    """Routed experts, evenly loaded; all ranks' tokens together decide which are read."""
    b, moe, layout = blueprint, blueprint.moe, deployment.layout
    assert moe is not None, "only asked for in MoE layers"
    # Prefill-context-parallel ranks share out a prompt, and all decode the same sequences.
    together = batch.tokens * layout.dp * (1 if batch.decode else layout.pcp)
    touched = 1.0 - (1.0 - moe.topk / moe.experts) ** together
    pairs = batch.tokens * moe.topk / layout.tp
    held = layer_experts(b, layer_id, deployment, rank=0)
    return Operation(
        linear="",
        flops=2.0 * pairs * 3 * b.hidden * moe.intermediate,
        moved_bytes=sum(t.nbytes for t in held) * touched + 2.0 * pairs * 2 * b.hidden,
        precision=b.quantization.precision(held),
    )
