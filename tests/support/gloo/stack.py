"""A stack of linears, whole or sharded by the manual API, and what a rank sees of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vllm_layershard.manual import finish_loading, reach_layer, register_layer, wait_layer
from vllm_layershard.runtime.series import ShardedSeries

WIDTH = 32


class Stack(nn.Module):
    """Linears in a row, each sharded, with a bias that is not."""

    def __init__(self, num_layers: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(num_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for linear in self.linears:
            x = torch.tanh(linear(x))
        return x

    def sharded_forward(self, x: torch.Tensor) -> torch.Tensor:
        for linear in self.linears:
            reach_layer(linear)
            wait_layer(linear)
            x = torch.tanh(linear(x))
        return x


def shard(
    stack: Stack, prefetch_step: int, start: int = 0, verify: bool = False, **options: Any
) -> ShardedSeries:
    """Shard all linears of the stack, as layers from `start` on of one series."""
    for i, linear in enumerate(stack.linears):
        register_layer(
            linear, series="linear", layer_id=start + i, prefetch_step=prefetch_step, **options
        )
    return finish_loading("linear", verify=verify)


def forwards(rank: int, series: ShardedSeries, stack: Stack, count: int) -> dict[str, Any]:
    """What a rank sees in `count` forwards, each with poisoned slots and an input of its own."""
    plain = Stack(len(stack.linears), seed=7)
    addresses, equal = set(), []
    for forward in range(count):
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * rank + forward))
        series.slots.poison()
        equal.append(torch.equal(stack.sharded_forward(x), plain(x)))
        addresses.add(tuple(linear.weight.data_ptr() for linear in stack.linears))
    return {
        "equal": equal,
        "addresses": len(addresses),
        "resident": series.resident_bytes(),
        "slots": series.slots.nbytes(),
        "ledger": series.plan.ledger,
        "counters": series.counters,
        "in_flight": series.in_flight,
    }
