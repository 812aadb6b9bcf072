"""A stack of linears on the GPU, sharded under the host's ops, and the same with all weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vllm_layershard.config import Placement
from vllm_layershard.plan import Series, SeriesPlan, build_plan
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.loading import LoadingSeries

WIDTH = 512

Begin = Callable[[SeriesPlan, list[torch.Tensor]], LoadingSeries]
"""Begins to load the series of a plan; the whole stack's weights are given too."""


class ShardedStack(nn.Module):
    """One of two ranks. The weights are the same on both."""

    def __init__(
        self,
        device: Device,
        num_layers: int,
        prefetch_step: int,
        begin: Begin,
        placement: Placement = "round_robin",
    ) -> None:
        super().__init__()
        torch.manual_seed(7)
        place = device.torch_device
        self.compute_delay_cycles = 0
        self.whole = [(torch.randn(WIDTH, WIDTH) / 16).to(place) for _ in range(num_layers)]
        self.linears = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH, bias=False, device=place) for _ in range(num_layers)
        )
        layout = Series("linear", tuple(range(num_layers)), WIDTH * WIDTH * 4)
        (plan,) = build_plan([layout], 2, prefetch_step, placement).series
        loading = begin(plan, self.whole)
        with torch.no_grad():
            for i, linear in enumerate(self.linears):
                linear.weight.copy_(self.whole[i])
                loading.adopt(i, linear, ("weight",))
        self.series = loading.finish(plan)
        self._bind()

    def _bind(self) -> None:
        """Layer i's boundary is `gpu.i`, its linear `gpu.i.linear`."""
        positions = range(len(self.linears))
        ops.unbind([f"gpu.{i}" for i in positions])
        for i in positions:
            ops.bind(f"gpu.{i}", f"gpu.{i}.linear", ops.Place(self.series, i))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, linear in enumerate(self.linears):
            torch.ops.layershard.reach(x, f"gpu.{i}")
            torch.ops.layershard.wait(x, f"gpu.{i}.linear")
            delay(self.compute_delay_cycles)
            x = torch.tanh(linear(x))
        return x

    def reload(self, position: int, weight: torch.Tensor) -> None:
        """Serve another weight from now on, as a host that has just loaded one does."""
        self.whole[position].copy_(weight)
        linear = self.linears[position]
        linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
        self.series.reload(position, linear)

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


def delay(cycles: int) -> None:
    """Keep the current stream busy."""
    if cycles:
        torch.cuda._sleep(cycles)
