"""Lane: what weights move on, in one order on every rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property

import torch

from vllm_layershard.runtime.device import Device, device_of
from vllm_layershard.runtime.ranks.group import RankGroup, private_group


class Lane:
    """A side stream for each device, and process groups of its own over the ranks of `group`.

    Shardings that share a lane must be started and waited for in one order on every rank.
    """

    def __init__(
        self, group: RankGroup, device_of: Callable[[torch.device], Device] = device_of
    ) -> None:
        self.group = group
        self.device = cache(device_of)

    @cached_property
    def private(self) -> RankGroup:
        """The ranks over process groups of the lane's own. Collective at the first time."""
        return private_group(self.group)
