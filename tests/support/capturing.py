"""A device whose streams are captured in graphs, without a GPU: what CUDA refuses is an error.

Work is done at once, and noted in the graph that is being captured, which does it again when it is
replayed. An event of one graph that is waited for in another, or outside, is refused, and so is an
end of a capture to which a side stream has not come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from vllm_layershard.runtime.device import Device

ISOLATION = "operation would make dependencies between captures (cudaErrorStreamCaptureIsolation)"
UNJOINED = "the capture was not joined to the stream it began on (cudaErrorStreamCaptureUnjoined)"


class Graph:
    """Stands for `torch.cuda.CUDAGraph`. `log` has what all of them and their devices did."""

    log: ClassVar[list[str]] = []
    current: Graph | None = None

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.forked: set[int] = set()

    def capture_begin(self, pool: Any = None) -> None:
        assert Graph.current is None
        Graph.current = self
        Graph.log.append("begin")

    def capture_end(self) -> None:
        Graph.current = None
        Graph.log.append("end")
        if self.forked:
            raise RuntimeError(UNJOINED)

    def replay(self) -> None:
        Graph.log.append("replay")
        for each in self.work:
            each()


def compute(work: Callable[[], None]) -> None:
    """Do what writes to fixed memory alone, on the compute stream."""
    work()
    if Graph.current is not None:
        Graph.current.work.append(work)


class CapturingDevice(Device):
    """The side stream does its work at once; its events know the graph that they are in."""

    backend = "gloo"

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self._count = 0

    def enqueue(self, work: Callable[[], None], end: Any = None) -> tuple[Graph | None, int]:
        compute(work)
        self._count += 1
        if Graph.current is not None:
            Graph.current.forked.add(self._count)
        return Graph.current, self._count

    def join(self, event: tuple[Graph | None, int]) -> None:
        graph, number = event
        if graph is not Graph.current:
            raise RuntimeError(ISOLATION)
        if graph is not None:
            graph.forked.discard(number)

    def synchronize(self) -> None:
        assert Graph.current is None, "not while a graph is captured"

    def is_capturing(self) -> bool:
        return Graph.current is not None
