"""Two processes on one GPU: each stores half of a stack, and pulls the rest out of the other's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from one_gpu.stack import ShardedStack, delay
from vllm_layershard.config import Placement
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import StreamDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import group_over
from vllm_layershard.runtime.transport import transport_of


class Gpu(StreamDevice):
    """The device as it is, with a link that can be made slow."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", 0), torch.cuda, "nccl", priority=-1)
        self.link_delay_cycles = 0

    def enqueue(self, work: Callable[[], None], end: Any = None) -> Any:
        def slowed() -> None:
            delay(self.link_delay_cycles)
            work()

        return super().enqueue(slowed, end)


class NoConsumed(Gpu):
    """Its side stream does not wait for the compute stream: a refill may overtake a reader."""

    def enqueue(self, work: Callable[[], None], end: Any = None) -> Any:
        with torch.cuda.stream(self._side):
            delay(self.link_delay_cycles)
            work()
        return self._side.record_event(end)


class NoCopied(Gpu):
    """Its compute stream does not wait for the side stream: a reader may overtake the copy."""

    def join(self, event: Any) -> None:
        return None


DEVICES = {kind.__name__: kind for kind in (Gpu, NoConsumed, NoCopied)}


class Pulled(ShardedStack):
    """A stack whose weights are pulled. Made by both ranks."""

    def __init__(
        self,
        device: Gpu,
        num_layers: int,
        prefetch_step: int,
        placement: Placement = "round_robin",
        slice_bytes: int = 0,
        *,
        verify: bool = False,
    ) -> None:
        def begin(plan: SeriesPlan, _: list[torch.Tensor]) -> LoadingSeries:
            group = group_over(None)
            transport = transport_of(plan, group, device, "pull", slice_bytes)
            return LoadingSeries(plan, group, device, transport, verify=verify)

        super().__init__(device, num_layers, prefetch_step, begin, placement)
