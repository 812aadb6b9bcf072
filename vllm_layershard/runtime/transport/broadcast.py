"""Broadcast: the owner sends to all ranks of the group at once (gloo, nccl, hccl); lockstep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.ranks.nccl import warn_of_order
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.tensors import flat
from vllm_layershard.runtime.transport.base import Ticket, Transport

STALL_S = 300.0
"""How long a layer is waited for at most, from the second forward on: as long as vLLM waits for one
step (VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS). In the first one, and while loading, others may still
compile, or read from a cold disk: there the process group's own timeout holds."""


class Broadcast(Transport):
    """Broadcasts on the group's own process group, on the side stream.

    A start calls the process group itself: `dist.broadcast` checks and translates each time what is
    fixed here, and costs the CPU half as much again (benchmarks/overlap.py: a start a layer).
    """

    name = "broadcast"
    device: Device

    def __init__(self, group: RankGroup, device: Device) -> None:
        self._group = group
        self._process_group = group.data
        self._forwards = 0
        self.device = device
        self._options: tuple[dist.BroadcastOptions, ...] = ()
        self._stored: dict[int, tuple[torch.Tensor, ...]] = {}
        self._outgoing: dict[int, tuple[torch.Tensor, ...]] = {}
        self._incoming: tuple[tuple[torch.Tensor, ...], ...] = ()
        self._ends: tuple[Any, ...] = ()
        """By slot: see Device.enqueue. What a slot received before is joined by then."""

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self._stored[position] = tuple(tensors)
        self._outgoing[position] = tuple(flat(tensor) for tensor in tensors)
        return self._stored[position]

    def open(self, plan: SeriesPlan, slots: SlotPool) -> None:
        if self.device.backend == "nccl" and self._group.ranks[self._group.group_rank] == 0:
            warn_of_order()  # one rank speaks for all
        queued = self.device.backend == "nccl"
        self._options = tuple(_from(rank, asynchronous=not queued) for rank in plan.owner)
        self._incoming = tuple(tuple(flat(t) for t in slot) for slot in slots.tensors)
        self._ends = tuple(self.device.event() for _ in slots.tensors)

    def begin(self) -> None:
        self._forwards += 1
        if self._forwards == 2 and self.device.backend == "gloo":
            self._group.bound_movements(STALL_S)

    def start(self, position: int, slot: int) -> Ticket:
        tensors = self._outgoing.get(position, self._incoming[slot])
        options = self._options[position]

        def send() -> None:
            works = [self._process_group.broadcast([tensor], options) for tensor in tensors]
            for work in works:
                if work is not None:  # NCCL's is on the side stream already
                    work.wait()  # gloo: until it is done; on a device the CPU goes on

        return Ticket(self.device, self.device.enqueue(send, self._ends[slot]))

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        for stored, new in zip(self._stored.get(position, ()), tensors, strict=True):
            stored.copy_(new)


def _from(group_rank: int, *, asynchronous: bool) -> dist.BroadcastOptions:
    """From this rank of the group (not of the world).

    If it is not `asynchronous`, NCCL sends on the current stream, which is the side stream, and
    not on one of its own: an event and two waits fewer. Its watchdog looks on as before. Read in
    torch's ProcessGroupNCCL.cpp, `collective` (2.12); not run. HCCL's was not read: as before.
    """
    options = dist.BroadcastOptions()
    options.rootRank = group_rank
    options.rootTensor = 0
    options.asyncOp = asynchronous
    return options
