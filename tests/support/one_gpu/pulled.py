"""Two processes on one GPU: each keeps half of a stack, and pulls the rest out of the other's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from one_gpu.copies import WIDTH, bind_layers, delay
from vllm_layershard.config import Placement
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.device import StreamDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import group_over
from vllm_layershard.runtime.transport import transport_of


class Gpu(StreamDevice):
    """The device as it is, with a link that can be made slow."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", 0), torch.cuda, "nccl")
        self.link_delay_cycles = 0

    def enqueue(self, work: Callable[[], None]) -> Any:
        def slowed() -> None:
            delay(self.link_delay_cycles)
            work()

        return super().enqueue(slowed)


class NoConsumed(Gpu):
    """Its side stream does not wait for the compute stream: a refill may overtake a reader."""

    def enqueue(self, work: Callable[[], None]) -> Any:
        with torch.cuda.stream(self._side):
            delay(self.link_delay_cycles)
            work()
        return self._side.record_event()


class NoCopied(Gpu):
    """Its compute stream does not wait for the side stream: a reader may overtake the copy."""

    def join(self, event: Any) -> None:
        return None


DEVICES = {kind.__name__: kind for kind in (Gpu, NoConsumed, NoCopied)}


class Pulled(nn.Module):
    """A stack whose weights are pulled, and the same stack with all weights. Made by both ranks."""

    def __init__(
        self,
        device: Gpu,
        num_layers: int,
        prefetch_step: int,
        placement: Placement = "round_robin",
        slice_bytes: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.compute_delay_cycles = 0
        place = device.torch_device
        whole = [torch.randn(WIDTH, WIDTH) / 16 for _ in range(num_layers)]
        self.whole = [weight.to(place) for weight in whole]
        self.linears = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH, bias=False, device=place) for _ in range(num_layers)
        )
        layout = Series("linear", tuple(range(num_layers)), WIDTH * WIDTH * 4)
        (plan,) = build_plan([layout], 2, prefetch_step, placement).series
        group = group_over(None)
        transport = transport_of(plan, group, device, "pull", slice_bytes)
        loading = LoadingSeries(plan, group, device, transport)
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

    def addresses(self) -> list[int]:
        """Where the linears read."""
        return [linear.weight.data_ptr() for linear in self.linears]


def batch(forward: int) -> torch.Tensor:
    generator = torch.Generator(device="cuda").manual_seed(forward)
    return torch.randn(4, WIDTH, device="cuda", generator=generator)
