"""Broadcasts of a real NCCL group: of one rank on one GPU, and between two GPUs where there are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from gloo.ranks import run_ranks
from gpu.cases import cases, needs
from one_gpu.alone import Alone, nccl_group
from one_gpu.graphs import captured
from one_gpu.sent import Sent
from one_gpu.stack import batch
from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.ranks.group import create_groups, group_over, private_group
from vllm_layershard.runtime.ranks.nccl import MAX_CTAS

LONG_CYCLES = 20_000_000
"""About ten milliseconds: far longer than a copy or a GEMM here."""
POLLED_S = 0.35
"""The watchdog of ProcessGroupNCCL looks at its works every tenth of a second."""

SHAPES = [(5, 1), (5, 0), (7, 3)]
ASYNC = [True, False]


@contextmanager
def alone(folder: Path, num_layers: int, prefetch_step: int, asynchronous: bool) -> Iterator[Alone]:
    """Run once, so that the communicator is there."""
    group = nccl_group(folder)
    try:
        device = device_of(torch.device("cuda", 0))
        stack = Alone(device, num_layers, prefetch_step, group, asynchronous)
        stack(batch(0))
        torch.cuda.synchronize()
        yield stack
    finally:
        dist.destroy_process_group()


@cases("num_layers, prefetch_step", SHAPES)
@cases("asynchronous", ASYNC)
@cases("slow", ["neither", "link", "compute"])
@torch.inference_mode()
def test_eager_broadcasts_of_one_rank(tmp_path, num_layers, prefetch_step, asynchronous, slow):
    with alone(tmp_path, num_layers, prefetch_step, asynchronous) as stack:
        stack.transport.link_delay_cycles = LONG_CYCLES if slow == "link" else 0
        stack.compute_delay_cycles = LONG_CYCLES if slow == "compute" else 0
        for forward in range(3):
            stack.series.slots.poison()
            assert torch.equal(stack(batch(forward)), stack.unsharded(batch(forward)))


@cases("num_layers, prefetch_step", SHAPES)
@cases("asynchronous", ASYNC)
@torch.inference_mode()
def test_captured_broadcasts_and_eager_ones_between_replays(
    tmp_path, num_layers, prefetch_step, asynchronous
):
    with alone(tmp_path, num_layers, prefetch_step, asynchronous) as stack:
        x = batch(0).clone()
        graph, said = captured(lambda: stack(x))
        for forward in range(3):
            x.copy_(batch(forward))
            stack.series.slots.poison()
            graph.replay()
            assert torch.equal(said, stack.unsharded(x))
            assert torch.equal(stack(batch(9)), stack.unsharded(batch(9))), "eager between replays"
        torch.cuda.synchronize()


@cases("asynchronous", ASYNC)
@torch.inference_mode()
def test_the_watchdog_may_poll_while_a_forward_is_captured(tmp_path, asynchronous):
    """Eager works are still on its list, and the capture stays open over several of its looks."""
    with alone(tmp_path, 5, 1, asynchronous) as stack:
        x = batch(0).clone()
        for _ in range(20):
            stack(x)

        def slowly() -> torch.Tensor:
            said = stack(x)
            time.sleep(POLLED_S)
            return said

        graph, said = captured(slowly)
        stack.series.slots.poison()
        graph.replay()
        assert torch.equal(said, stack.unsharded(x))
        assert torch.equal(stack(x), stack.unsharded(x))
        torch.cuda.synchronize()


@cases("made", ["for the host", "for the manual API"])
def test_a_group_that_moves_weights_may_take_a_few_blocks_only(tmp_path, rows, made):
    nccl_group(tmp_path)
    try:
        if made == "for the host":
            group = create_groups([(0,)], "nccl", beside_others=True)[0]
        else:
            group = private_group(group_over(None))
        x = torch.arange(1 << 20, device="cuda")
        group.broadcast(x, 0)
        torch.cuda.synchronize()
        config = group.data._get_backend(torch.device("cuda")).options.config
        rows({made: f"at most {config.max_ctas} blocks"})
        assert config.max_ctas == MAX_CTAS
        assert torch.equal(x.cpu(), torch.arange(1 << 20))
    finally:
        dist.destroy_process_group()


@torch.inference_mode()
def sent(rank: int, mode: str, slow: str, *shape: int) -> list[bool]:
    """Whether forwards of a rank on a GPU of its own are right: the owners' bytes over NCCL."""
    torch.cuda.set_device(rank)
    stack = Sent(torch.device("cuda", rank), *shape)
    stack.compute_delay_cycles = LONG_CYCLES if slow == f"rank {rank}" else 0
    x = batch(0).clone()
    right = [torch.equal(stack(x), stack.unsharded(x))]
    torch.cuda.synchronize()
    replayed = captured(lambda: stack(x)) if mode == "captured" else None
    for forward in range(3):
        x.copy_(batch(forward))
        stack.series.slots.poison()
        if replayed is not None:
            graph, said = replayed
            graph.replay()
            right.append(torch.equal(said, stack.unsharded(x)))
            stack.series.slots.poison()
        right.append(torch.equal(stack(x), stack.unsharded(x)))
    torch.cuda.synchronize()
    dist.barrier()
    return right


@needs(gpus=2)
@cases("num_layers, prefetch_step", SHAPES)
@cases("mode", ["eager", "captured"])
@cases("slow", ["neither", "rank 0", "rank 1"])
def test_two_gpus_are_sent_the_owners_bytes(tmp_path, mode, slow, num_layers, prefetch_step):
    for right in run_ranks(2, sent, tmp_path, mode, slow, num_layers, prefetch_step):
        assert all(right)
