"""LayerWeights: the linears and the routed experts of one layer, as one rank holds them."""

from __future__ import annotations

from functools import lru_cache

from vllm_layershard.errors import PlanError
from vllm_layershard.models.blueprint import Blueprint, Moe
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import Linear, TensorSpec


@lru_cache(maxsize=1 << 13)  # a forecast asks for the same layers again and again
def layer_linears(
    blueprint: Blueprint, layer_id: int, deployment: Deployment
) -> tuple[tuple[Shape, Linear], ...]:
    """The linears of one layer on one rank, each with its shape."""
    b, tp = blueprint, deployment.layout.tp
    found = []
    for shape in b.shapes(layer_id, deployment):
        prefix = f"{b.stem}.{layer_id}.{shape.suffix}"
        linear = Linear(
            prefix=prefix,
            layer_id=layer_id,
            tp_replicated=tp == 1 or shape.split == "none",
            tensors=b.quantization.tensors(prefix, shape, b.dtype, tp),
        )
        found.append((shape, linear))
    return tuple(found)


def layer_experts(
    blueprint: Blueprint, layer_id: int, deployment: Deployment, rank: int
) -> tuple[TensorSpec, ...]:
    """The routed experts of one layer on a global rank; none in a dense layer.

    Source: vLLM 0.32, `determine_expert_map`.

    Raises:
        PlanError: the quantisation's blocks would be split over ranks.
    """
    b = blueprint
    if b.moe is None or not b.moe.layers[layer_id]:
        return ()
    count, intermediate = b.moe.experts, b.moe.intermediate
    ranks = deployment.expert_ranks
    if deployment.ep:
        count = count // ranks + (deployment.expert_rank(rank) < count % ranks)
    else:
        intermediate //= ranks
    prefix = f"{b.stem}.{layer_id}.{b.moe.name}"
    return b.quantization.experts(prefix, count, b.hidden, intermediate, b.moe.bias, b.dtype)


def require_experts_divide(moe: Moe, deployment: Deployment) -> None:
    """Refuse a layout that cannot share out the routed experts.

    Raises:
        PlanError: names what does not divide.
    """
    ranks = deployment.expert_ranks
    if deployment.ep and ranks > moe.experts:
        raise PlanError(
            f"{ranks} ranks share {moe.experts} routed experts: with expert parallelism "
            "every rank needs one; use fewer ranks"
        )
    if not deployment.ep and moe.intermediate % ranks:
        raise PlanError(
            f"without expert parallelism {ranks} ranks split every routed expert, and their "
            f"width of {moe.intermediate:,} does not divide by that; use --ep or fewer ranks"
        )
