"""The split of a model's dense MLPs, or why there is none: what the plugin would say of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import PlanError
from vllm_layershard.ffn_config import FFN_KEY
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.ffn.record import SplitMlps
from vllm_layershard.models.layer_weights import dense_linears
from vllm_layershard.models.model import Model
from vllm_layershard.models.shape import Shape
from vllm_layershard.plan import Linear, layers_of, require_layers, select, stage_layers
from vllm_layershard.plan.ffn import FfnSplit, beside_split

_BLOCK_SCALES: Final = "weight_scale_inv"
"""What vLLM calls the scales of fp8 in blocks, and of nothing else."""


def split_mlps(model: Model, deployment: Deployment) -> tuple[SplitMlps, ...]:
    """The dense MLPs over `deployment.ffn` data-parallel ranks each, by pipeline stage.

    Raises:
        PlanError: the model, its numbers or the layout give no parts, as the plugin says it.
    """
    layout = replace(deployment.layout, dp_lockstep=model.is_moe)
    split = FfnSplit(layout, deployment.ffn)
    if deployment.sequence_parallel_moe:
        raise PlanError(
            f"{FFN_KEY}: with expert, tensor and data parallelism together (--ep, tp {layout.tp}, "
            f"dp {layout.dp}) the layers run on shards of the tokens (sequence parallelism); leave "
            "out one of the two"
        )
    found = []
    for layers in stage_layers(model.num_layers, layout.pp):
        pairs = list(_dense(model, layers, deployment))
        for shape, linear in pairs:
            _require_parts(split, shape, linear)
        of_stage = split.bytes_of(linear for _, linear in pairs)
        names = tuple(linear.prefix for _, linear in pairs)
        found.append(SplitMlps(names, of_stage.held, of_stage.saved))
    if not any(stage.mlps for stage in found):
        raise PlanError(
            f"{FFN_KEY}: {model.name} has no decoder layer without routed experts, so there is no "
            "dense MLP to split; leave it out"
        )
    return tuple(found)


def others_than(
    split: Sequence[SplitMlps], linears: Sequence[Linear], config: LayerShardConfig
) -> tuple[Linear, ...]:
    """The linears that are not split, among which those of the configuration are.

    Raises:
        PlanError: a name matches none of them.
    """
    gone = {prefix for stage in split for prefix in stage.linears}
    left = tuple(linear for linear in linears if linear.prefix not in gone)
    try:
        require_layers([layers_of(select(left, config.layers))], left, config.layer_stride)
    except PlanError as error:
        raise beside_split(error) from None
    return left


def _dense(
    model: Model, layers: Sequence[int], deployment: Deployment
) -> Iterator[tuple[Shape, Linear]]:
    for layer_id in layers:
        yield from dense_linears(model.blueprint, layer_id, deployment)


def _require_parts(split: FfnSplit, shape: Shape, linear: Linear) -> None:
    """Refuse a linear that the plugin would not split."""
    weight, *scales = sorted(linear.tensors, key=lambda tensor: tensor.name)
    if weight.name != "weight" or [scale.name for scale in scales] not in ([], [_BLOCK_SCALES]):
        names = ", ".join(tensor.name for tensor in linear.tensors)
        raise PlanError(
            f"{FFN_KEY}: {linear.prefix} is stored as {names}, which is not split here; "
            "unquantised linears without a bias and fp8 in blocks are; leave it out"
        )
    # Both linears of an MLP are split along its width: rows of one, columns of the other.
    along = 1 if shape.split == "in" else 0
    width = shape.inner if along else shape.outs[0]
    block = weight.shape[along] // scales[0].shape[along] if scales else 1
    split.require_even(linear.prefix, width * split.layout.tp, block)
