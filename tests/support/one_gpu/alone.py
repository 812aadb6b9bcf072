"""Broadcasts over a real NCCL group of one rank: its streams, events and works, and no peer.

NCCL refuses two ranks on one GPU. Of a group of one it moves nothing, so a copy on the side stream
brings the other rank's layer first. What is shown is the order that torch keeps around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from one_gpu.stack import ShardedStack, delay
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.transport import Ticket, Transport


def nccl_group(folder: Path) -> dist.ProcessGroup:
    """The world of this process alone."""
    return process_group_alone(folder, "nccl")


def process_group_alone(folder: Path, backend: str) -> dist.ProcessGroup:
    """The same over any backend."""
    dist.init_process_group(
        backend, init_method=f"file://{folder}/{backend}", rank=0, world_size=1, device_id=None
    )
    group = dist.group.WORLD
    assert group is not None
    return group


class AloneBroadcast(Transport):
    """As Broadcast, whose `start` it follows, but that every root is rank 0."""

    name = "broadcast"

    def __init__(
        self,
        device: Device,
        process_group: dist.ProcessGroup,
        source: Sequence[torch.Tensor],
        asynchronous: bool,
    ) -> None:
        self._device = device
        self._process_group = process_group
        self._source = source
        self._options = dist.BroadcastOptions()
        self._options.rootRank = 0
        self._options.rootTensor = 0
        self._options.asyncOp = asynchronous
        self._stored: dict[int, tuple[torch.Tensor, ...]] = {}
        self._slots: SlotPool
        self.link_delay_cycles = 0

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self._stored[position] = tuple(tensors)
        return self._stored[position]

    def open(self, plan: SeriesPlan, slots: SlotPool) -> None:
        self._slots = slots
        self._ends = tuple(self._device.event() for _ in slots.tensors)

    def start(self, position: int, slot: int) -> Ticket:
        def send() -> None:
            tensors = self._stored.get(position, self._slots.tensors[slot])
            if position not in self._stored:
                delay(self.link_delay_cycles)
                (target,) = tensors
                target.copy_(self._source[position])
            works = [self._process_group.broadcast([t.view(-1)], self._options) for t in tensors]
            for work in works:
                if work is not None:  # without asyncOp it runs on the current stream
                    work.wait()

        return Ticket(self._device, self._device.enqueue(send, self._ends[slot]))

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        for stored, new in zip(self._stored.get(position, ()), tensors, strict=True):
            stored.copy_(new)


class Alone(ShardedStack):
    """A stack as rank 0 of two sees it, over that group."""

    def __init__(
        self,
        device: Device,
        num_layers: int,
        prefetch_step: int,
        process_group: dist.ProcessGroup,
        asynchronous: bool,
    ) -> None:
        def begin(plan: SeriesPlan, whole: list[torch.Tensor]) -> LoadingSeries:
            group = RankGroup((0, 1), 0, data=process_group, control=process_group)
            transport = AloneBroadcast(device, process_group, whole, asynchronous)
            return LoadingSeries(plan, group, device, transport)

        super().__init__(device, num_layers, prefetch_step, begin)

    @property
    def transport(self) -> AloneBroadcast:
        transport = self.series.transport
        assert isinstance(transport, AloneBroadcast)
        return transport
