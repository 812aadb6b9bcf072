"""Forwards whose weights are pulled, beside the same compute with all weights in place.

The second rank stores all layers. The first pulls them, and compares every forward and every replay
with the whole stack's. A row is a slice size and a ratio of fetch to compute. "Exposed" is what a
forward with pulls takes longer, launched one by one and as a captured graph.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.on_gpu.bare import between, device_for
from benchmarks.on_gpu.products import ROUNDS, Products, captured, milliseconds, spread
from gloo.ranks import run_ranks
from gpu.cases import cases
from vllm_layershard.manual import finish_loading, reach_layer, register_layer, wait_layer

TOKENS = 16
WIDTH = 8192
LAYERS = 16
RATIOS = (0.25, 0.5, 0.75, 1.0)
MIB = 1 << 20

Write = Callable[[dict[str, Any]], None]


@cases("slice_bytes", [0, 16 * MIB, 4 * MIB, MIB])
def bench_forwards_with_pulls(tmp_path: Path, rows: Write, slice_bytes: int) -> None:
    run_ranks(2, _measured, tmp_path, rows, slice_bytes)


class Stack:
    """Layers whose weights are pulled, and the same ones in place. Made by both ranks."""

    def __init__(self, device: torch.device, slice_bytes: int) -> None:
        generator = torch.Generator(device).manual_seed(7)
        self._whole = [
            torch.randn(WIDTH, WIDTH, device=device, generator=generator).to(torch.bfloat16) / 64
            for _ in range(LAYERS)
        ]
        self._linears = [
            nn.Linear(WIDTH, WIDTH, bias=False, device=device, dtype=torch.bfloat16)
            for _ in range(LAYERS)
        ]
        self._x = torch.randn(TOKENS, WIDTH, device=device, generator=generator).to(torch.bfloat16)
        for i, (linear, weight) in enumerate(zip(self._linears, self._whole, strict=True)):
            linear.weight.data.copy_(weight)
            register_layer(
                linear,
                series="pulled",
                layer_id=2 * i + 1,  # odd: rank 1 owns all of them
                transport="pull",
                slice_bytes=slice_bytes,
            )
        finish_loading("pulled")

    def pulled(self, half: Callable[[], None]) -> torch.Tensor:
        """A forward with `half` of the other compute before each linear, and half after it."""
        x = self._x
        for linear in self._linears:
            reach_layer(linear)
            half()
            wait_layer(linear)
            x = torch.tanh(linear(x))
            half()
        return x

    def in_place(self, half: Callable[[], None]) -> torch.Tensor:
        """The same without movements."""
        x = self._x
        for weight in self._whole:
            half()
            x = torch.tanh(nn.functional.linear(x, weight))
            half()
        return x

    def pulls(self) -> None:
        """The movements of a forward, and no compute."""
        for linear in self._linears:
            reach_layer(linear)
            wait_layer(linear)


@torch.inference_mode()
def _measured(rank: int, rows: Write, slice_bytes: int) -> None:
    device = device_for(rank)
    stack = Stack(device, slice_bytes)
    try:
        if rank == 0:
            products = Products(device)
            for ratio in RATIOS:
                row = {"between": between(), "slice_bytes": slice_bytes}
                rows(row | _row_of(stack, products, ratio))
    finally:
        torch.cuda.synchronize()
        dist.barrier()  # the second keeps its memory until the first has done


def _row_of(stack: Stack, products: Products, ratio: float) -> dict[str, Any]:
    """Everything in turn, round after round.

    Raises:
        AssertionError: a forward with pulls says something else than the whole stack.
    """
    fetch = statistics.median(milliseconds(stack.pulls) for _ in range(ROUNDS))
    linears, _ = captured(lambda: stack.in_place(lambda: None))
    linears.replay()
    spare = max(0.0, fetch / ratio - milliseconds(linears.replay)) / LAYERS / 2
    count = max(1, round(spare / products.one_ms))

    def half() -> None:
        products.run(count)

    expected = stack.in_place(half).clone()
    assert torch.equal(stack.pulled(half), expected), "other bytes were pulled"
    torch.cuda.synchronize()
    in_place_graph, _ = captured(lambda: stack.in_place(half))
    pulled_graph, said = captured(lambda: stack.pulled(half))
    works: dict[str, Callable[[], object]] = {
        "compute_ms": lambda: stack.in_place(half),
        "pulled_ms": lambda: stack.pulled(half),
        "graph_compute_ms": in_place_graph.replay,
        "graph_pulled_ms": pulled_graph.replay,
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name].append(milliseconds(work))
            if name == "graph_pulled_ms":
                assert torch.equal(said, expected), "a replay pulled other bytes"
    compute, pulled, graph_compute, graph_pulled = map(statistics.median, times.values())
    return {
        "fetch/compute_wanted": ratio,
        "fetch/compute_reached": round(fetch / graph_compute, 3),
        "fetch_ms": round(fetch, 3),
        "exposed_ms": round(pulled - compute, 3),
        "graph_exposed_ms": round(graph_pulled - graph_compute, 3),
    } | {name: spread(taken) for name, taken in times.items()}
