"""One GPU plays rank 0 of two: what rank 1 owns is copied from elsewhere in the device's memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vllm_layershard.plan import Series, SeriesPlan, build_plan
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.transport import Ticket, Transport

WIDTH = 512


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
            return Ticket(self.device, self.device.enqueue(copy))
        unordered = torch.cuda.Stream()
        with torch.cuda.stream(unordered):
            copy()
        return Ticket(self.device, unordered.record_event())


class OneOfTwo(nn.Module):
    """A sharded stack as rank 0 sees it, and the same stack with all weights."""

    def __init__(self, device: Device, num_layers: int, prefetch_step: int) -> None:
        super().__init__()
        torch.manual_seed(7)
        place = device.torch_device
        self.compute_delay_cycles = 0
        self.whole = [torch.randn(WIDTH, WIDTH, device=place) / 16 for _ in range(num_layers)]
        self.linears = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH, bias=False, device=place) for _ in range(num_layers)
        )
        layout = Series("linear", tuple(range(num_layers)), WIDTH * WIDTH * 4)
        (plan,) = build_plan([layout], 2, prefetch_step).series
        group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
        self.transport = Copies(device, self.whole)
        loading = LoadingSeries(plan, group, device, self.transport)
        with torch.no_grad():
            for i, linear in enumerate(self.linears):
                linear.weight.copy_(self.whole[i])
                loading.adopt(i, linear, ("weight",))
        self.series = loading.finish(plan)
        bind_layers(self.series)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, linear in enumerate(self.linears):
            torch.ops.layershard.reach(x, f"gpu.{i}")
            torch.ops.layershard.wait(x, f"gpu.{i}.linear")
            delay(self.compute_delay_cycles)
            x = torch.tanh(linear(x))
        return x

    def unsharded(self, x: torch.Tensor) -> torch.Tensor:
        """What every rank would say with all weights."""
        for weight in self.whole:
            x = torch.tanh(nn.functional.linear(x, weight))
        return x

    def change_weights(self) -> None:
        """Other weights, in the same memory: rank 0's own and those that it fetches."""
        for position, weight in enumerate(self.whole):
            weight.neg_()
            if self.series.owns(position):
                self.series.resident[position]["weight"].copy_(weight)

    def addresses(self) -> list[int]:
        """Where the linears read."""
        return [linear.weight.data_ptr() for linear in self.linears]


def bind_layers(series: ShardedSeries) -> None:
    """Layer i's boundary is `gpu.i`, its linear `gpu.i.linear`."""
    positions = range(len(series.plan.series))
    ops.unbind([f"gpu.{i}" for i in positions])
    for i in positions:
        ops.bind(f"gpu.{i}", f"gpu.{i}.linear", ops.Place(series, i))


def delay(cycles: int) -> None:
    """Keep the current stream busy."""
    if cycles:
        torch.cuda._sleep(cycles)
