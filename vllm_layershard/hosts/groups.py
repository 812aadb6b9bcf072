"""The process groups of layer sharding in vLLM's world, private to it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vllm_layershard.plan import ParallelLayout
from vllm_layershard.runtime.group import RankGroup, create_groups


class Groups:
    """This rank's groups of equal copies. Making them is collective over the whole world."""

    def __init__(self, layout: ParallelLayout, backend: str, parallel_config: Any) -> None:
        world_size = dist.get_world_size()
        assert world_size % layout.world_size == 0, f"{world_size} ranks for {layout}"
        wanted: dict[tuple[int, ...], None] = {}
        for first in range(0, world_size, layout.world_size):  # vLLM's ExternalDP dimension
            for tp_replicated in (False, True):
                for ranks in layout.groups(tp_replicated):
                    wanted[tuple(first + rank for rank in ranks)] = None
        self._layout = layout
        groups = create_groups(
            list(wanted),
            backend,
            data_timeout=_timeout(parallel_config, "distributed_timeout_seconds"),
            control_timeout=_timeout(parallel_config, "cpu_distributed_timeout_seconds"),
        )
        self._mine = list(groups.values())

    def of(self, tp_replicated: bool) -> RankGroup:
        """The group that holds the same copies of a linear as this rank."""
        size = self._layout.group_size(tp_replicated)
        return next(group for group in self._mine if group.size == size)


def _timeout(parallel_config: Any, setting: str) -> timedelta | None:
    """How long vLLM's own groups wait; a release without the setting has torch's default."""
    seconds = getattr(parallel_config, setting, None)
    return None if seconds is None else timedelta(seconds=seconds)
