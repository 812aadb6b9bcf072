"""Rank 0 of two on the simulated device, with a stack of linears whose weights move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from one_gpu.copies import CopiedStack, Copies
from one_gpu.stack import WIDTH
from simulated.deferred import Deferred
from simulated.nccl import Nccl
from simulated.streams import Accelerator
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import StreamDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.transport import Broadcast, Ticket

LAYERS = 6
HERE = torch.device("cpu")


def gpu(accelerator: Accelerator) -> StreamDevice:
    """The product's own device for CUDA, on simulated streams."""
    return StreamDevice(HERE, accelerator, "nccl")  # type: ignore[arg-type]


def over_hccl(accelerator: Accelerator) -> StreamDevice:
    """The same for a backend whose broadcasts run on a stream of its own."""
    return StreamDevice(HERE, accelerator, "hccl")  # type: ignore[arg-type]


class TwoLinks(Copies):
    """Two side streams take turns, so that two movements may be under way in any order.

    A movement that was started before `end` must be over when the compute stream comes there.
    """

    def __init__(self, devices: Sequence[StreamDevice], source: Sequence[torch.Tensor]) -> None:
        super().__init__(devices[0], source)
        self._links = devices
        self._started = self._ended = 0

    def start(self, position: int, slot: int) -> Ticket:
        self.device = self._links[position // 2 % 2]
        started, streams = self._started, self.device._accelerator

        def copy() -> None:
            if position not in self.stored:
                streams.current_stream().give(lambda: self._check(started))
                (target,) = self.slots.tensors[slot]
                target.copy_(self.source[position])

        return Ticket(self.device, self.device.enqueue(copy, self.ends[slot]))

    def end(self) -> None:
        """Here no movement of before may be left."""
        self._started += 1
        self._links[0]._accelerator.current_stream().give(self._end)

    def _end(self) -> None:
        self._ended += 1

    def _check(self, started: int) -> None:
        assert started == self._ended, "a movement is late"


class Rank(CopiedStack):
    """`ranks` are those of its group that a reload waits for, itself among them."""

    def __init__(
        self,
        accelerator: Accelerator,
        prefetch_step: int,
        *,
        kind: Callable[[Accelerator], StreamDevice] = gpu,
        two_links: bool = False,
        over_nccl: bool = False,
        ranks: tuple[int, ...] = (0, 1),
    ) -> None:
        device, other = kind(accelerator), gpu(accelerator)

        def begin(plan: SeriesPlan, whole: list[torch.Tensor]) -> LoadingSeries:
            if over_nccl:
                order = [ahead for launched in plan.schedule.launches for ahead in launched]
                self.nccl = Nccl(accelerator, whole, order)
                group = RankGroup(ranks, 0, data=self.nccl, control=None)  # type: ignore[arg-type]
                return LoadingSeries(plan, group, device, Broadcast(group, device))
            group = RankGroup(ranks, 0, data=None, control=None)  # type: ignore[arg-type]
            copies = TwoLinks((device, other), whole) if two_links else Copies(device, whole)
            return LoadingSeries(plan, group, device, copies)

        super().__init__(device, LAYERS, prefetch_step, begin)
        self.accelerator = accelerator

    def results(self, forwards: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """What the forwards say once all is done."""
        with torch.inference_mode(), Deferred(self.accelerator):
            said = forwards()
        self.accelerator.synchronize()
        return said


def batch(forward: int) -> torch.Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(forward))
