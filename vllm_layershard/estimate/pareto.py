"""What can be saved for which price in time: the Pareto curve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import PlanError
from vllm_layershard.estimate.auto_layers import candidates
from vllm_layershard.estimate.forecast import lacking_for
from vllm_layershard.estimate.forwards.forwards import Forwards
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.models import Batch, Deployment, Model, shard_model

_STRIDES: Final = (1, 2, 4)
_MOST_NAMES: Final = 6


@dataclass(frozen=True, slots=True)
class Point:
    """One choice: bytes that the binding rank saves, and seconds that each batch takes longer."""

    layers: tuple[str, ...]
    layer_stride: int
    saved_bytes: int
    exposed: tuple[float, ...]


def pareto(
    model: Model,
    deployment: Deployment,
    hardware: Hardware,
    template: LayerShardConfig,
    batches: tuple[Batch, ...],
) -> tuple[Point, ...]:
    """Points for the linears that save most, one after the other, at a few strides.

    Empty where the hardware lacks a number. `template` holds all other options; what it exchanges
    is sharded at every point.
    """
    points: list[Point] = []
    for stride in _STRIDES:
        names = template.token_exchange
        strided = replace(template, layer_stride=stride)
        further = [(name,) for name in candidates(model, deployment, strided)[:_MOST_NAMES]]
        for more in [(), *further] if names else further:
            try:
                config = replace(strided, layers=(*names, *more))
                sharding = shard_model(model, deployment, config)
            except PlanError:
                continue  # two names of one linear
            names = config.layers
            if lacking_for(sharding, hardware):
                return ()
            forwards = Forwards(sharding, hardware)
            step = sharding.config.prefetch_step
            points.append(
                Point(
                    layers=names,
                    layer_stride=stride,
                    saved_bytes=min(sharding.saved_bytes),
                    exposed=tuple(forwards.run(batch, step).exposed for batch in batches),
                )
            )
    return tuple(points)


def frontier(points: Iterable[Point], batch: int) -> tuple[Point, ...]:
    """The points that no other beats in both bytes and the time of one batch, by bytes."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.saved_bytes, p.exposed[batch])):
        if not best or point.exposed[batch] < best[-1].exposed[batch]:
            best.append(point)
    return tuple(reversed(best))
