"""Scenarios: forwards of both ranks between which tokens move, in all ways that hosts run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from one_gpu.tokens import TokenPieces, TokenStack
from simulated.scenarios import ORDERS
from simulated.streams import Accelerator, CaptureError
from simulated.world import Given, Kind, World
from vllm_layershard.errors import LayerShardError

Replay = Callable[[], torch.Tensor]
Scenario = Callable[[World], Iterator[str]]
"""Says where a forward is wrong."""


def eager(world: World) -> Iterator[str]:
    """Forward after forward, without a pause; one that nobody has a token for among them."""
    loads = [*world.ranks[0].loads, (0, 0), *world.ranks[0].loads]
    forwards = [world.given(load, number) for number, load in enumerate(loads)]

    def run(stack: TokenStack, rank: int) -> list[torch.Tensor]:
        return [forward_of(stack, everyone, rank) for everyone in forwards]

    yield from world.faults(world.on_each(run), forwards)


def replayed(world: World) -> Iterator[str]:
    """A graph for each load; they are replayed in turn, with an eager forward behind each."""

    def whole(stack: TokenStack, x: torch.Tensor) -> Replay:
        graph, said = world.capture(lambda: stack(x))
        return lambda: (graph.replay(), said)[1]

    return _replayed(world, whole)


def in_pieces(world: World) -> Iterator[str]:
    """Likewise, and of each forward some stages are captured, and the others eager."""
    return _replayed(world, lambda stack, x: TokenPieces(stack, x, world.capture).replay)


SCENARIOS: tuple[Scenario, ...] = (eager, replayed, in_pieces)


def _replayed(
    world: World, captured: Callable[[TokenStack, torch.Tensor], Replay]
) -> Iterator[str]:
    loads = world.ranks[0].loads
    places = [world.given(load, 0) for load in loads]
    forwards = [world.given(load, 1 + number) for number, load in enumerate(loads * 2)]
    between = world.given(loads[0], 0)

    def capture(stack: TokenStack, rank: int) -> list[Replay]:
        graphs = []
        for load, place in zip(loads, places, strict=True):
            stack.counts = load
            graphs.append(captured(stack, place[rank]))
        return graphs

    graphs = world.on_each(capture)

    def run(stack: TokenStack, rank: int) -> list[torch.Tensor]:
        said = []
        for number, everyone in enumerate(forwards):
            at = number % len(loads)
            stack.counts = loads[at]
            places[at][rank].copy_(everyone[rank])
            said.append(graphs[rank][at]().clone())
            said.append(forward_of(stack, between, rank))
        return said

    told = [each for everyone in forwards for each in (everyone, between)]
    yield from world.faults(world.on_each(run), told)


def forward_of(stack: TokenStack, everyone: Given, rank: int) -> torch.Tensor:
    """An eager one."""
    stack.counts = tuple(map(len, everyone))
    return stack(everyone[rank])


def faults(
    scenario: Scenario, kind: Kind, step: int, *, own_streams: bool = False
) -> Iterator[str]:
    """What goes wrong in any order of work."""
    for order, seed in ORDERS:
        where = f"{kind.__name__}, {scenario.__name__}, step {step}, {order} {seed}"
        try:
            world = World(Accelerator(order, seed), kind, step, own_streams=own_streams)
            for fault in scenario(world):
                yield f"{where}: {fault}"
        except (CaptureError, LayerShardError, AssertionError) as error:
            yield f"{where}: {type(error).__name__}: {error}"
