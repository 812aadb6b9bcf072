"""Forwards between which tokens move: beside a mirror on one GPU, and between two where there are.

Of each kind: a token exchange around a linear, an MLP in parts, a linear that computes for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from gloo.ranks import run_ranks
from gpu.cases import cases, needs
from one_gpu.alone import process_group_alone
from one_gpu.graphs import captured
from one_gpu.mirror import mirrored
from one_gpu.tokens import KINDS, RANKS, TokenPieces, TokenStack
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import create_groups
from vllm_layershard.runtime.transport import transport_of

LONG_CYCLES = 20_000_000
"""About ten milliseconds: far longer than a copy or a GEMM here."""

SHAPE = (5, 1)
"""Layers, and the prefetch step."""
BY_NAME = {kind.__name__: kind for kind in KINDS}
SLOW = ["neither", "link", "compute"]


@contextmanager
def beside_a_mirror(
    folder: Path, kind: str, slow: str = "neither", place: str = "cuda"
) -> Iterator[TokenStack]:
    """Run once with each load, so that communicator and libraries are there."""
    alone = process_group_alone(folder, "nccl" if place == "cuda" else "gloo")
    try:
        device = device_of(torch.device(place, 0) if place == "cuda" else torch.device(place))
        stack = mirrored(BY_NAME[kind], device, SHAPE, alone)
        for load in stack.loads:
            forward_of(stack, load, 0)
        stack.series.transport.link_delay_cycles = LONG_CYCLES if slow == "link" else 0
        stack.compute_delay_cycles = LONG_CYCLES if slow == "compute" else 0
        yield stack
        device.synchronize()
    finally:
        dist.destroy_process_group()


def forward_of(stack: TokenStack, load: tuple[int, ...], seed: int) -> tuple[torch.Tensor, ...]:
    """What an eager forward says, beside what is right."""
    stack.counts = load
    x = stack.tokens(load, seed)[0]
    return stack(x), stack.expected_beside_mirror(x)


def eager_forwards(stack: TokenStack) -> None:
    for forward in range(3):
        for load in stack.loads:
            stack.series.slots.poison()
            said, right = forward_of(stack, load, forward)
            assert torch.equal(said, right)


@needs(gpus=0)
@cases("kind", BY_NAME)
@torch.inference_mode()
def test_what_is_run_on_a_gpu_is_right_on_a_cpu(tmp_path, kind):
    with beside_a_mirror(tmp_path, kind, place="cpu") as stack:
        eager_forwards(stack)
        assert stack.group.tokens.collectives > 0


@cases("kind", BY_NAME)
@cases("slow", SLOW)
@torch.inference_mode()
def test_eager_forwards_that_move_tokens(tmp_path, kind, slow):
    with beside_a_mirror(tmp_path, kind, slow) as stack:
        eager_forwards(stack)


@cases("kind", BY_NAME)
@cases("slow", SLOW)
@cases("how", ["whole", "in pieces"])
@torch.inference_mode()
def test_captured_forwards_that_move_tokens_and_eager_ones_between(tmp_path, kind, slow, how):
    """A graph for each load, replayed in turn; in pieces the graphs end where vLLM's do."""
    with beside_a_mirror(tmp_path, kind, slow) as stack:
        places, replays = [], []
        for load in stack.loads:
            stack.counts = load
            places.append(stack.tokens(load, 0)[0])
            replays.append(replay_of(stack, places[-1], how))
        for forward in range(2):
            for load, place, replay in zip(stack.loads, places, replays, strict=True):
                stack.counts = load
                place.copy_(stack.tokens(load, 1 + forward)[0])
                stack.series.slots.poison()
                assert torch.equal(replay(), stack.expected_beside_mirror(place))
                said, right = forward_of(stack, stack.loads[0], 9)
                assert torch.equal(said, right), "eager between replays"


def replay_of(stack: TokenStack, x: torch.Tensor, how: str):
    """What replays a forward over `x`, and gives its result."""
    if how == "in pieces":
        return TokenPieces(stack, x, captured).replay
    graph, said = captured(lambda: stack(x))
    return lambda: (graph.replay(), said)[1]


def between_ranks(rank: int, kind: str, place: str, mode: str) -> list[bool]:
    """Whether forwards of real ranks are right: tokens and weights over the product's groups."""
    if place == "cuda":
        torch.cuda.set_device(rank)
    device = device_of(torch.device(place, rank) if place == "cuda" else torch.device(place))
    ranks = [tuple(range(RANKS))]
    weights = create_groups(ranks, device.backend, beside_others=True)[0]
    group = replace(weights, apart=create_groups(ranks, device.backend)[0].data)

    def begin(plan: SeriesPlan, _: list[torch.Tensor]) -> LoadingSeries:
        return LoadingSeries(plan, group, device, transport_of(plan, group, device, "broadcast"))

    right = []
    with torch.inference_mode():
        stack = BY_NAME[kind](f"rank{rank}", group, device, SHAPE, begin)

        def check(load: tuple[int, ...], seed: int, replay=None) -> None:
            everyone = stack.tokens(load, seed)
            stack.counts = load
            if replay is None:
                said = stack(everyone[rank])
            else:
                places[load].copy_(everyone[rank])
                said = replay()
            right.append(torch.equal(said, stack.expected(everyone)[rank]))

        for load in stack.loads:
            check(load, 0)
        places, replays = {}, {}
        for load in stack.loads if mode != "eager" else ():
            stack.counts = load
            places[load] = stack.tokens(load, 0)[rank]
            replays[load] = replay_of(stack, places[load], mode)
        for seed in range(1, 4):
            for load in stack.loads:
                check(load, seed, replays.get(load))
                check(stack.loads[0], seed)
    device.synchronize()
    dist.barrier()
    return right


@needs(gpus=0)
@cases("kind", BY_NAME)
def test_two_ranks_without_a_gpu_move_tokens(tmp_path, kind):
    for right in run_ranks(RANKS, between_ranks, tmp_path, kind, "cpu", "eager"):
        assert all(right)


@needs(gpus=2)
@cases("kind", BY_NAME)
@cases("mode", ["eager", "whole", "in pieces"])
def test_two_gpus_move_tokens(tmp_path, kind, mode):
    for right in run_ranks(RANKS, between_ranks, tmp_path, kind, "cuda", mode):
        assert all(right)
