"""What every answer says first, of the model, the layout, the sharding and its groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vllm_layershard.config import Move, Placement, TransportChoice
from vllm_layershard.models import Deployment, Evidence, GroupPlan, Sharding
from vllm_layershard.planner.layout import Layout

if TYPE_CHECKING:
    from vllm_layershard.models.ffn.record import SplitMlps


class ModelFacts(NamedTuple):
    """The model, and where its config.json came from; `revision` is a commit, if anyone said it."""

    name: str
    source: str
    revision: str | None
    architecture: str
    num_layers: int
    dtype: str
    quantization: str


class ShardingFacts(NamedTuple):
    """The configuration as planned. `movement` is how weights move; None where none does.

    The linears of `token_exchange` are whole on every tensor-parallel rank.
    """

    layers: tuple[str, ...]
    prefetch_step: int
    layer_stride: int
    keep_first: bool
    placement: Placement
    transport: TransportChoice
    movement: str | None
    slice_bytes: int
    token_exchange: tuple[str, ...]
    move: Move
    move_weights_from: int | None


class FfnFacts(NamedTuple):
    """Dense MLPs that data-parallel ranks split, `size` ranks each: how many, and bytes of a rank.

    Lists are by pipeline stage, and `ranks` are the global ranks of each group.
    """

    size: int
    ranks: tuple[tuple[int, ...], ...]
    mlps: tuple[int, ...]
    held_bytes: tuple[int, ...]
    saved_bytes: tuple[int, ...]


class GroupFacts(NamedTuple):
    """The groups that obey one plan: the global ranks of each, and the plan's digest."""

    pp_stage: int
    tp_replicated: bool
    ranks: tuple[tuple[int, ...], ...]
    digest: str


def model_facts(sharding: Sharding, evidence: Evidence) -> ModelFacts:
    """What is planned."""
    model = sharding.model
    return ModelFacts(
        name=model.name,
        source=model.source,
        revision=evidence.revision,
        architecture=model.architecture,
        num_layers=model.num_layers,
        dtype=model.dtype,
        quantization=model.quantization,
    )


def layout_of(sharding: Sharding) -> Layout:
    """Over which ranks."""
    sizes = sharding.deployment.layout
    return Layout(sizes.tp, sizes.dp, sizes.pcp, sizes.pp, sharding.deployment.ep)


def sharding_facts(sharding: Sharding) -> ShardingFacts:
    """With which configuration."""
    config = sharding.config
    return ShardingFacts(
        layers=config.layers,
        prefetch_step=config.prefetch_step,
        layer_stride=config.layer_stride,
        keep_first=config.keep_first,
        placement=config.placement,
        transport=config.transport,
        movement=" and ".join(sharding.transport_names) or None,
        slice_bytes=config.slice_bytes,
        token_exchange=config.token_exchange,
        move=config.move,
        move_weights_from=config.move_weights_from,
    )


def ffn_facts(sharding: Sharding) -> FfnFacts | None:
    """Which dense MLPs are split; None where none is."""
    return facts_of_split(sharding.split_mlps, sharding.deployment)


def facts_of_split(stages: Sequence[SplitMlps], deployment: Deployment) -> FfnFacts | None:
    """The same of a split by pipeline stage."""
    if not stages:
        return None
    from vllm_layershard.plan.ffn import FfnSplit  # seldom asked for

    return FfnFacts(
        size=deployment.ffn,
        ranks=FfnSplit(deployment.layout, deployment.ffn).groups(),
        mlps=tuple(stage.mlps for stage in stages),
        held_bytes=tuple(stage.held_bytes for stage in stages),
        saved_bytes=tuple(stage.saved_bytes for stage in stages),
    )


def group_facts(group: GroupPlan) -> GroupFacts:
    """Which ranks share."""
    return GroupFacts(group.pp_stage, group.tp_replicated, group.ranks, group.plan.digest())
