"""Captured work: a graph and its result, a forward cut in pieces, and captures that must fail."""

from __future__ import annotations

from collections.abc import Callable

import torch

from one_gpu.stack import ShardedStack, delay


def captured(work: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of the work, and where its replays leave the result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


def failure_of(work: Callable[[], object]) -> Exception | None:
    """What capturing the work raises, or None.

    Where the end of a capture fails, torch leaves the capture's stream current, and its default
    generator in capture (torch/cuda/graphs.py, `graph.__exit__`): draw no random number after this.
    """
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            work()
    except Exception as error:
        return error
    finally:
        torch.cuda.set_stream(stream)
    return None


def words_of(error: BaseException) -> list[str]:
    """The first line of an error, and of what it came after: the end of a capture fails last."""
    said = []
    found: BaseException | None = error
    while found is not None:
        said.append(f"{type(found).__name__}: {found}".splitlines()[0])
        found = found.__cause__ or found.__context__
    return said


class Pieces:
    """A forward whose compute is captured in pieces, with `reach` and `wait` eager between them.

    So does vLLM's PIECEWISE mode, which splits the graph at our ops. A layer is two pieces: one
    between its `reach` and its `wait`, one with the linear.
    """

    def __init__(self, stack: ShardedStack, x: torch.Tensor) -> None:
        self._stack = stack
        self._before: list[torch.cuda.CUDAGraph] = []
        self._after: list[torch.cuda.CUDAGraph] = []
        self._kept: list[torch.Tensor] = []
        """What pieces read: its memory must not be given to a later piece."""
        for i in range(len(stack.linears)):
            self._kept.append(x)
            torch.ops.layershard.reach(x, f"gpu.{i}")
            x = self._piece(self._before, torch.sin, x)
            torch.ops.layershard.wait(x, f"gpu.{i}.linear")
            x = self._piece(self._after, self._layer(i), x)
        self._result = x

    def _layer(self, i: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def layer(x: torch.Tensor) -> torch.Tensor:
            delay(self._stack.compute_delay_cycles)
            return torch.tanh(self._stack.linears[i](x))

        return layer

    def _piece(
        self,
        pieces: list[torch.cuda.CUDAGraph],
        work: Callable[[torch.Tensor], torch.Tensor],
        x: torch.Tensor,
    ) -> torch.Tensor:
        graph, result = captured(lambda: work(x))
        pieces.append(graph)
        self._kept.append(result)
        return result

    def replay(self) -> torch.Tensor:
        """A forward over what the first input holds now."""
        for i, (before, after) in enumerate(zip(self._before, self._after, strict=True)):
            torch.ops.layershard.reach(self._kept[0], f"gpu.{i}")
            before.replay()
            torch.ops.layershard.wait(self._kept[0], f"gpu.{i}.linear")
            after.replay()
        return self._result

    def unsharded(self, x: torch.Tensor) -> torch.Tensor:
        """What it says with all weights."""
        for weight in self._stack.whole:
            x = torch.tanh(torch.nn.functional.linear(torch.sin(x), weight))
        return x
