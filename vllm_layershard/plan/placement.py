"""Which rank of a group owns which layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from vllm_layershard.config import Placement
from vllm_layershard.plan.rows import Stripe
from vllm_layershard.plan.series import Series

EVERY_RANK: Final = -1
"""The owner of a layer that every rank stores (`replicated` placement)."""

NO_RANK: Final = -2
"""The owner of a layer of which every rank stores a stripe (`striped` placement)."""

_UNIT_BYTES: Final = 256
"""Stripes begin at multiples of it: what a device copies best. Those of rows begin at rows."""


def round_robin_owner(layer_id: int, group_size: int, layer_stride: int = 1) -> int:
    """The owning group rank: (absolute layer index // layer_stride) % group_size.

    It does not depend on where a pipeline stage starts or on which other layers are in a series.
    """
    return (layer_id // layer_stride) % group_size


def owners(
    series: Series, group_size: int, placement: Placement, layer_stride: int
) -> tuple[int, ...]:
    """The owning group rank of each position."""
    if placement != "round_robin":
        return (EVERY_RANK if placement == "replicated" else NO_RANK,) * len(series)
    return loaders(series, group_size, layer_stride)


def loaders(series: Series, group_size: int, layer_stride: int) -> tuple[int, ...]:
    """The group rank that reads each position from the checkpoint for all; its owner, if one."""
    return tuple(round_robin_owner(i, group_size, layer_stride) for i in series.layer_ids)


def stripes(layer_bytes: int, group_size: int, unit_bytes: int = _UNIT_BYTES) -> tuple[Stripe, ...]:
    """What each group rank stores of a layer; they differ by a unit at most, some may be empty."""
    units = -(-layer_bytes // unit_bytes)
    bounds = [
        min(layer_bytes, rank * units // group_size * unit_bytes) for rank in range(group_size + 1)
    ]
    return tuple(pairwise(bounds))
