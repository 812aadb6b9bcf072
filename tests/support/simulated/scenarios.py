"""Scenarios: forwards in all ways that hosts run them, and what goes wrong in any order of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from one_gpu.stack import WIDTH
from simulated.deferred import Deferred
from simulated.rank import LAYERS, Rank, TwoLinks, batch, gpu, over_hccl
from simulated.streams import Accelerator, CaptureError, Graph, Order
from vllm_layershard.errors import LayerShardError
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.reload import Reloads
from vllm_layershard.runtime.reload.act import Act
from vllm_layershard.runtime.reload.board import Board

Results = list[tuple[torch.Tensor, torch.Tensor]]
"""What forwards have said, each beside what is right."""


def eager(accelerator: Accelerator, step: int) -> Results:
    """Forward after forward, without a pause."""
    stack, batches = Rank(accelerator, step), [batch(i) for i in range(3)]
    said = stack.results(lambda: [stack(x) for x in batches])
    return list(zip(said, map(stack.unsharded, batches), strict=True))


def skipping(accelerator: Accelerator, step: int) -> Results:
    """Every other forward reaches all boundaries and reads no weight, as dummy batches may."""
    stack, batches = Rank(accelerator, step, two_links=True), [batch(i) for i in range(3)]

    def forwards() -> list[torch.Tensor]:
        said = []
        for x in batches:
            for i in range(LAYERS):
                torch.ops.layershard.reach(x, f"gpu.{i}")
            for i, linear in enumerate(stack.linears):
                torch.ops.layershard.reach(x, f"gpu.{i}")
                torch.ops.layershard.wait(x, f"gpu.{i}.linear")
                for _ in range(8):  # a late movement has time to arrive before the linear reads
                    x = x * 1.0
                x = torch.tanh(linear(x))
            said.append(x)
        return said

    return list(zip(stack.results(forwards), map(stack.unsharded, batches), strict=True))


def replayed(accelerator: Accelerator, step: int) -> Results:
    """A forward is captured and replayed, and other weights come between the replays."""
    stack, x = Rank(accelerator, step), batch(0)
    graph, said = captured(stack, x)
    found = []
    for _ in range(3):
        (copy,) = stack.results(lambda: (graph.replay(), [said.clone()])[1])
        found.append((copy, stack.unsharded(x)))
        stack.results(lambda: (stack.change_weights(), [])[1])
    return found


def captured(stack: Rank, x: torch.Tensor) -> tuple[Graph, torch.Tensor]:
    """The graph of a forward, and where its replays leave the result."""
    streams = stack.accelerator
    with torch.inference_mode(), Deferred(streams), streams.capture() as graph:
        said = stack(x)
    return graph, said


def in_pieces(accelerator: Accelerator, step: int) -> Results:
    """Linears are captured, each alone; `reach` and `wait` stand eager between their replays."""
    stack, x = Rank(accelerator, step), batch(0)
    pieces: list[tuple[Graph, torch.Tensor]] = []
    with torch.inference_mode(), Deferred(accelerator):
        value = x
        for linear in stack.linears:
            with accelerator.capture() as graph:
                value = torch.tanh(linear(value))
            pieces.append((graph, value))

    def forward() -> list[torch.Tensor]:
        for i, (graph, _) in enumerate(pieces):
            torch.ops.layershard.reach(x, f"gpu.{i}")
            torch.ops.layershard.wait(x, f"gpu.{i}.linear")
            graph.replay()
        return [pieces[-1][1].clone()]

    return [(stack.results(forward)[0], stack.unsharded(x)) for _ in range(2)]


def reloaded(accelerator: Accelerator, step: int) -> Results:
    """A forward that reads nothing, then a drain, and other weights: nothing may arrive late."""
    stack, x = Rank(accelerator, step, two_links=True), batch(0)

    def forwards() -> list[torch.Tensor]:
        for i in range(LAYERS):
            torch.ops.layershard.reach(x, f"gpu.{i}")
        stack.series.drain()
        assert isinstance(stack.series.transport, TwoLinks)
        stack.series.transport.end()
        stack.change_weights()
        return [stack(x)]

    (said,) = stack.results(forwards)
    return [(said, stack.unsharded(x))]


class TwoSeries:
    """Two series whose movements start at the same boundaries, on one side stream."""

    def __init__(self, accelerator: Accelerator, step: int) -> None:
        self.device = gpu(accelerator)
        self.stacks = [Rank(accelerator, step, kind=lambda _: self.device) for _ in range(2)]
        ops.unbind([f"gpu.{i}" for i in range(LAYERS)])
        for number, stack in enumerate(self.stacks):
            for i in range(LAYERS):
                ops.bind(f"gpu.{i}", f"gpu.{i}.{number}", ops.Place(stack.series, i))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(LAYERS):
            torch.ops.layershard.reach(x, f"gpu.{i}")
            for number, stack in enumerate(self.stacks):
                torch.ops.layershard.wait(x, f"gpu.{i}.{number}")
                x = torch.tanh(stack.linears[i](x))
        return x

    def unsharded(self, x: torch.Tensor) -> torch.Tensor:
        for weights in zip(*(stack.whole for stack in self.stacks), strict=True):
            for weight in weights:
                x = torch.tanh(torch.nn.functional.linear(x, weight))
        return x


def of_two_series(accelerator: Accelerator, step: int) -> Results:
    """Eager forwards, then a captured one that is replayed."""
    both, x = TwoSeries(accelerator, step), batch(0)
    results = both.stacks[0].results
    said = results(lambda: [both(x), both(-x)])
    with torch.inference_mode(), Deferred(accelerator), accelerator.capture() as graph:
        kept = both(x)
    said += [results(lambda: (graph.replay(), [kept.clone()])[1])[0] for _ in range(2)]
    return [(each, both.unsharded(y)) for each, y in zip(said, (x, -x, x, x), strict=True)]


class Watched(Board):
    """Of one rank. As soon as it shows that it is ready, or has ended, others read and write."""

    ranks = (0,)
    rank = 0

    def __init__(self, stack: Rank) -> None:
        self._stack = stack
        self._shown: dict[str, Any] = {}

    def show(self, document: Any) -> None:
        news = {key for key in document if document[key] != self._shown.get(key)}
        self._shown = document
        if news - {"beats"}:  # it beats while it works
            assert self._stack.series.in_flight == (), "a movement is under way"
            assert self._stack.accelerator.is_idle(), "the device has something left to do"

    def read(self, rank: int) -> Any:
        return self._shown


def reloaded_with_others(accelerator: Accelerator, step: int) -> Results:
    """Behind a forward that reads nothing and one that reads all, as vLLM's reload does."""
    stack, x = Rank(accelerator, step, ranks=Watched.ranks), batch(0)
    reloads = Reloads(Act(Watched(stack)), [stack.series], stack.series.transport.device)

    def forwards() -> list[torch.Tensor]:
        former = stack(x)
        for i in range(LAYERS):
            torch.ops.layershard.reach(x, f"gpu.{i}")
        with reloads.reloading(lambda: None):
            for i in range(LAYERS):
                stack.reload(i, torch.eye(WIDTH) * (i + 1))
        return [former, stack(x)]

    before = stack.unsharded(x)
    said = stack.results(forwards)
    return list(zip(said, (before, stack.unsharded(x)), strict=True))


def broadcast_on_a_stream_of_its_own(accelerator: Accelerator, step: int) -> Results:
    """As HCCL does, and NCCL by default: the side stream must wait for it."""
    stack = Rank(accelerator, step, kind=over_hccl, over_nccl=True)
    batches = [batch(i) for i in range(2)]
    said = stack.results(lambda: [stack(x) for x in batches])
    return list(zip(said, map(stack.unsharded, batches), strict=True))


SCENARIOS = (
    reloaded_with_others,
    broadcast_on_a_stream_of_its_own,
    reloaded,
    skipping,
    eager,
    replayed,
    in_pieces,
    of_two_series,
)
"""In this order they find quickly what is missing."""

STEPS = (0, 1, 2)
ORDERS: list[tuple[Order, int]] = [
    ("compute first", 0),
    ("side first", 0),
    *(("delayed", seed) for seed in range(8)),
]


def faults(scenario: Callable[[Accelerator, int], Results], step: int) -> Iterator[str]:
    """What goes wrong in any order."""
    for order, seed in ORDERS:
        where = f"{scenario.__name__}, step {step}, {order} {seed}"
        try:
            found = scenario(Accelerator(order, seed), step)
        except (CaptureError, LayerShardError, AssertionError) as error:
            yield f"{where}: {type(error).__name__}: {error}"
            continue
        if not all(torch.equal(said, right) for said, right in found):
            yield f"{where}: another result"
