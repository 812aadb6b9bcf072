"""What dense MLPs in parts add to a forward: two collectives each, and products of other sizes."""

from __future__ import annotations

from vllm_layershard.estimate.exchange.collectives import all_gather_seconds
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import Spread, widest
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.models import Sharding
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.layer_operations import product
from vllm_layershard.models.layer_weights import dense_linears
from vllm_layershard.models.operation import Operation
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import Linear, stage_layers
from vllm_layershard.plan.ffn import FfnSplit


def split_spread(sharding: Sharding, hardware: Hardware) -> Spread | None:
    """How the ranks that split one MLP lie on domains of this hardware; None without a split."""
    if not sharding.split_mlps:
        return None
    split = FfnSplit(sharding.deployment.layout, sharding.deployment.ffn)
    return widest(split.groups(), int(hardware.node_size.value))


def split_seconds(sharding: Sharding, hardware: Hardware, tokens: int) -> tuple[float, ...]:
    """By pipeline stage, by how much its MLPs in parts take longer than whole ones; negative: less.

    Each rank has so many tokens. Those of the group are gathered, and each rank multiplies all by
    its part of the weights; a reduce-scatter, which takes as long as an all-gather of as many
    bytes, brings the sums back. Nothing hides either.
    """
    stages = stage_layers(sharding.model.num_layers, sharding.deployment.layout.pp)
    spread = split_spread(sharding, hardware)
    if spread is None:
        return (0.0,) * len(stages)
    deployment = sharding.deployment
    blueprint, roofline = sharding.model.blueprint, Roofline(hardware)
    nbytes = spread.ranks * tokens * blueprint.hidden * DTYPE_BYTES[sharding.model.dtype]
    both = 2 * all_gather_seconds(nbytes, spread, hardware)

    def longer(shape: Shape, linear: Linear) -> float:
        part = _part(product(blueprint, shape, linear, tokens), shape, linear, spread.ranks, tokens)
        return roofline.seconds(part) - roofline.seconds(product(blueprint, shape, linear, tokens))

    found = []
    for layers, stage in zip(stages, sharding.split_mlps, strict=True):
        of_stage = (pair for i in layers for pair in dense_linears(blueprint, i, deployment))
        found.append(stage.mlps * both + sum(longer(*pair) for pair in of_stage))
    return tuple(found)


def _part(own: Operation, shape: Shape, linear: Linear, ranks: int, tokens: int) -> Operation:
    """All ranks' tokens by one part of a linear: as many multiplications as a rank's by all."""
    inner, rows = float(shape.inner), float(shape.rows)
    if shape.split == "in":
        inner /= ranks
    else:
        rows /= ranks
    weight = linear.tensors[0].nbytes / ranks
    return own._replace(moved_bytes=weight + 2.0 * ranks * tokens * (rows + inner))
