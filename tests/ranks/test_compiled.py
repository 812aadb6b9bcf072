"""The two ops under Inductor, on real ranks: their order is kept, and the right bytes are read."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from gloo.ranks import run_ranks
from gloo.stack import WIDTH, Stack, shard
from vllm_layershard.runtime import ops

LAYERS = 5
CALL = re.compile(r"layershard\.(reach|wait)\.default\(.*?'(?:layers\.)?(\d+)|(\bmm)\(|(addmm)\(")


class WithOps(nn.Module):
    """A stack that calls the ops as the host's hooks and quant methods do."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, linear in enumerate(self.stack.linears):
            torch.ops.layershard.reach(x, f"layers.{i}")
            torch.ops.layershard.wait(x, f"layers.{i}.linear")
            x = torch.tanh(linear(x))
        return x


def bound(stack: Stack, prefetch_step: int) -> WithOps:
    series = shard(stack, prefetch_step)
    ops.unbind([f"layers.{i}" for i in range(LAYERS)])
    for i in range(LAYERS):
        ops.bind(f"layers.{i}", f"layers.{i}.linear", ops.Place(series, i))
    return WithOps(stack)


@torch.inference_mode()
def compiled(rank: int) -> dict:
    plain = Stack(LAYERS, seed=7)
    model = bound(Stack(LAYERS, seed=7), prefetch_step=1)
    (series,) = ops.bound_series()[-1:]
    torch._inductor.config.compile_threads = 1  # here; a pool of processes takes longer to start
    run = torch.compile(model, fullgraph=True, dynamic=False)
    close, addresses, code = [], set(), []
    for forward in range(3):
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * rank + forward))
        series.slots.poison()
        if forward == 0:
            found, code = run_and_get_code(run, x)
        else:
            found = run(x)
        close.append(torch.allclose(found, plain(x), rtol=0, atol=1e-6))
        addresses.add(tuple(linear.weight.data_ptr() for linear in model.stack.linears))
    calls = [f"{m[1]} {m[2]}" if m[1] else "mm" for text in code for m in CALL.finditer(text)]
    return {
        "close": close,
        "addresses": len(addresses),
        "calls": calls,
        "launches": series.counters.launches,
    }


def test_order_bytes_and_addresses(tmp_path):
    """Traced once, replayed with poisoned slots: three forwards, the last two without a trace."""
    for seen in run_ranks(2, compiled, tmp_path):
        assert seen["close"] == [True, True, True]
        assert seen["addresses"] == 1
        assert seen["launches"] == 3 * LAYERS
        assert seen["calls"] == [
            call for i in range(LAYERS) for call in (f"reach {i}", f"wait {i}", "mm")
        ]
