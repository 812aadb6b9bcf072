"""Placement: which rank of a group owns which layer."""

from __future__ import annotations

from typing import Final

from vllm_layershard.config import Placement
from vllm_layershard.plan.series import Series

EVERY_RANK: Final = -1
"""The owner of a layer that every rank keeps (`replicated` placement)."""


def round_robin_owner(layer_id: int, group_size: int, layer_stride: int = 1) -> int:
    """The owning group rank: (absolute layer index // layer_stride) % group_size.

    It does not depend on where a pipeline stage starts or on which other layers are in a series.
    """
    return (layer_id // layer_stride) % group_size


def owners(
    series: Series, group_size: int, placement: Placement, layer_stride: int
) -> tuple[int, ...]:
    """The owning group rank of each position."""
    if placement == "replicated":
        return (EVERY_RANK,) * len(series)
    return tuple(round_robin_owner(i, group_size, layer_stride) for i in series.layer_ids)
