"""A stack whose weights the product's own transport broadcasts, each rank on a GPU of its own."""

from __future__ import annotations

import torch
import torch.distributed as dist

from one_gpu.stack import ShardedStack
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import create_groups
from vllm_layershard.runtime.transport import transport_of


class Sent(ShardedStack):
    """Made by both ranks of a world that has been formed."""

    def __init__(self, place: torch.device, num_layers: int, prefetch_step: int) -> None:
        device = device_of(place)
        group = create_groups([tuple(range(dist.get_world_size()))], device.backend)[0]

        def begin(plan: SeriesPlan, _: list[torch.Tensor]) -> LoadingSeries:
            transport = transport_of(plan, group, device, "broadcast")
            return LoadingSeries(plan, group, device, transport)

        super().__init__(device, num_layers, prefetch_step, begin)
