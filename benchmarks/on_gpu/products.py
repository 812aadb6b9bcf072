"""Products: the compute beside which weights move, and how its time is taken."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

ROUNDS = 11


def milliseconds(work: Callable[[], object]) -> float:
    """From when the current stream begins with the work until it has done it."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of measurements, and how far they lie apart."""
    middle = statistics.median(values)
    return {"median": round(middle, 4), "low": round(min(values), 4), "high": round(max(values), 4)}


def captured(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of the work, and where its replays leave the result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        said = work()
    return graph, said


class Products:
    """Products of 4096 x 4096 by 4096 x 2048 in bfloat16: each takes longer than its launch.

    `one_ms` is taken from a graph, in which no launch by the CPU lies between two.
    """

    def __init__(self, device: torch.device) -> None:
        self._a = torch.randn(4096, 4096, device=device).to(torch.bfloat16)
        self._b = torch.randn(4096, 2048, device=device).to(torch.bfloat16)
        self._c = torch.empty(4096, 2048, device=device, dtype=torch.bfloat16)
        self.run(20)
        torch.cuda.synchronize()
        graph, _ = captured(lambda: self.run(50))
        graph.replay()
        self.one_ms = min(milliseconds(graph.replay) / 50 for _ in range(5))

    def run(self, count: int) -> None:
        """As many, on the current stream."""
        for _ in range(count):
            torch.mm(self._a, self._b, out=self._c)

    def graph_of(self, at_least_ms: float) -> torch.cuda.CUDAGraph:
        """As many as take this long, to be replayed with one launch."""
        graph, _ = captured(lambda: self.run(max(20, round(at_least_ms / self.one_ms))))
        graph.replay()
        torch.cuda.synchronize()
        return graph


class LongProduct:
    """One product that holds all multiprocessors for ten milliseconds and more."""

    def __init__(self, device: torch.device) -> None:
        self._a = torch.randn(16384, 16384, device=device).to(torch.bfloat16)
        self._b = torch.empty_like(self._a)
        self.run()

    def run(self) -> None:
        """On the current stream."""
        torch.mm(self._a, self._a, out=self._b)
