"""Placement: which rank of a group owns which layer."""

from __future__ import annotations

from typing import Final

from vllm_layershard.config import Placement
from vllm_layershard.plan.series import Series

EVERY_RANK: Final = -1
"""The owner of a layer that every rank keeps (`replicated` placement)."""


def owners(
    series: Series, group_size: int, placement: Placement, layer_stride: int
) -> tuple[int, ...]:
    """The owning group rank of each position.

    `round_robin`: (absolute layer index // layer_stride) % group_size, so that an owner does not
    depend on where a pipeline stage starts or on which other layers are in the series.
    """
    if placement == "replicated":
        return (EVERY_RANK,) * len(series)
    return tuple((layer_id // layer_stride) % group_size for layer_id in series.layer_ids)
