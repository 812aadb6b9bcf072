"""The linears of a sharding that are exchanged, those that are alike together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vllm_layershard.estimate.exchange.traffic import Traffic
from vllm_layershard.models import Sharding
from vllm_layershard.models.dtypes import DTYPE_BYTES
from vllm_layershard.models.exchange import Exchanged, exchanged_linears
from vllm_layershard.plan import stage_layers


class Alike(NamedTuple):
    """Linears of one name, shape and number format, in so many layers; `first` stands for all."""

    name: str
    layer_ids: tuple[int, ...]
    first: Exchanged
    traffic: Traffic

    @property
    def whole_bytes(self) -> int:
        """Bytes of one, whole; its small tensors are on every rank."""
        return self.first.whole.large_bytes

    @property
    def split_bytes(self) -> int:
        """Bytes of a rank's part of one under plain tensor parallelism."""
        return self.first.split.large_bytes


class Held(NamedTuple):
    """Bytes of exchanged linears on the ranks that hold most of them, slots included.

    Of their large tensors: scales and biases are on every rank in any case.

    `plain`: split, as plain tensor parallelism has them; `replicated`: whole on every rank;
    `sharded`: as the plan has them.
    """

    plain: int
    replicated: int
    sharded: int


def alike(sharding: Sharding) -> tuple[Alike, ...]:
    """By name, then by kind, each in layer order."""
    deployment, model = sharding.deployment, sharding.model
    element = DTYPE_BYTES[model.dtype]
    found: dict[tuple[object, ...], list[Exchanged]] = {}
    for name in deployment.exchange:
        for one in exchanged_linears(model, deployment, name):
            found.setdefault((name, one.whole_shape, one.whole.tensors), []).append(one)
    return tuple(
        Alike(
            name=str(name),
            layer_ids=tuple(one.whole.layer_id for one in members),
            first=members[0],
            traffic=Traffic(
                ranks=deployment.layout.tp,
                inner=members[0].whole_shape.inner,
                width=members[0].whole_shape.rows,
                element=element,
            ),
        )
        for (name, *_), members in found.items()
    )


def held(sharding: Sharding, linears: Iterable[Alike]) -> Held:
    """Add up each rank's."""
    layout = sharding.deployment.layout
    stages = stage_layers(sharding.model.num_layers, layout.pp)
    plain, whole = [0] * layout.pp, [0] * layout.pp
    for one in linears:
        for stage, layers in enumerate(stages):
            count = sum(layer_id in layers for layer_id in one.layer_ids)
            plain[stage] += count * one.split_bytes
            whole[stage] += count * one.whole_bytes
    sharded = [whole[layout.stage_of(rank)] for rank in range(layout.world_size)]
    for group in sharding.groups:
        for series_plan, members in zip(group.plan.series, group.linears, strict=True):
            if any(map(members[0].is_named, sharding.deployment.exchange)):
                for ranks in group.ranks:
                    saved_bytes = series_plan.ledger.saved_bytes
                    for rank, saved in zip(ranks, saved_bytes, strict=True):
                        sharded[rank] -= saved
    return Held(max(plain), max(whole), max(sharded))
