"""One GPU plays rank 0 of two: what rank 1 owns is copied from elsewhere in the device's memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from one_gpu.stack import ShardedStack, delay
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.transport import Ticket, Transport


class Copies(Transport):
    """Moves as Broadcast does on a device, with a copy in the place of the collective."""

    name = "broadcast"

    def __init__(self, device: Device, source: Sequence[torch.Tensor]):
        self.device = device
        self.source = source
        self.stored: dict[int, tuple[torch.Tensor, ...]] = {}
        self.slots: SlotPool
        self.link_delay_cycles = 0
        self.ordered = True

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self.stored[position] = tuple(tensors)
        return self.stored[position]

    def open(self, plan: SeriesPlan, slots: SlotPool) -> None:
        self.slots = slots
        self.ends = tuple(self.device.event() for _ in slots.tensors)

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        for stored, new in zip(self.stored.get(position, ()), tensors, strict=True):
            stored.copy_(new)

    def start(self, position: int, slot: int) -> Ticket:
        def copy() -> None:
            if position not in self.stored:
                delay(self.link_delay_cycles)
                (target,) = self.slots.tensors[slot]
                target.copy_(self.source[position])

        if self.ordered:
            return Ticket(self.device, self.device.enqueue(copy, self.ends[slot]))
        unordered = torch.cuda.Stream()
        with torch.cuda.stream(unordered):
            copy()
        return Ticket(self.device, unordered.record_event())


class CopiedStack(ShardedStack):
    """A sharded stack as rank 0 sees it, with no rank beside it: what it fetches is in `whole`."""

    def change_weights(self) -> None:
        """Other weights, in the same memory: its own and those that it fetches.

        Changed on the current stream, after all work that it has been given.
        """
        for position, weight in enumerate(self.whole):
            weight.neg_()
            if self.series.owns(position):
                self.series.resident[position]["weight"].copy_(weight)


class OneOfTwo(CopiedStack):
    """Its layers come over Copies."""

    def __init__(self, device: Device, num_layers: int, prefetch_step: int) -> None:
        def begin(plan: SeriesPlan, whole: list[torch.Tensor]) -> LoadingSeries:
            group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
            return LoadingSeries(plan, group, device, Copies(device, whole))

        super().__init__(device, num_layers, prefetch_step, begin)

    @property
    def transport(self) -> Copies:
        copies = self.series.transport
        assert isinstance(copies, Copies)
        return copies
