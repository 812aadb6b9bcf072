"""Pulls between two processes on one GPU: slow links, slow readers, graphs. Needs one GPU.

Neither rank waits for the other between two forwards; only at the end, since what one has mapped
is the other's.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from gloo.ranks import run_ranks
from gpu.cases import cases
from one_gpu.pulled import DEVICES, Pulled
from one_gpu.stack import batch

LONG_CYCLES = 20_000_000
"""About ten milliseconds: far longer than a copy or a GEMM here."""

SHAPES = [
    (5, 1, "round_robin", 0),
    (5, 0, "round_robin", 0),
    (7, 3, "round_robin", 1 << 18),
    (5, 1, "striped", 0),
    (7, 2, "striped", 100_000),
]


def built(device: str, slow: str, *shape: object, verify: bool = False) -> Pulled:
    stack = Pulled(DEVICES[device](), *shape, verify=verify)  # type: ignore[arg-type]
    if slow == "link":
        stack.series.device.link_delay_cycles = LONG_CYCLES
    if slow == "compute":
        stack.compute_delay_cycles = LONG_CYCLES
    return stack


@torch.inference_mode()
def eager(rank: int, device: str, slow: str, *shape: object) -> dict:
    """Whether the weights and the outputs of three forwards are right, and what stayed in place."""
    stack = built(device, slow, *shape)
    addresses, right = {tuple(stack.addresses())}, []
    torch.cuda.synchronize()
    for forward in range(3):
        stack.series.slots.poison()
        right.append(torch.equal(stack(batch(forward)), stack.unsharded(batch(forward))))
        addresses.add(tuple(stack.addresses()))
    torch.cuda.synchronize()
    dist.barrier()
    return {
        "right": right,
        "addresses": len(addresses),
        "resident": stack.series.resident_bytes(),
        "slots": stack.series.slots.nbytes(),
        "ledger": stack.series.plan.ledger,
    }


@cases("shape", SHAPES)
@cases("slow", ["neither", "link", "compute"])
def test_what_is_pulled_are_the_owners_bytes(tmp_path, shape, slow):
    for rank, seen in enumerate(run_ranks(2, eager, tmp_path, "Gpu", slow, *shape)):
        assert seen["right"] == [True, True, True]
        assert seen["addresses"] == 1
        assert seen["resident"] == seen["ledger"].resident_bytes[rank]
        assert seen["slots"] == seen["ledger"].slot_bytes


@cases("device, slow", [("NoConsumed", "compute"), ("NoCopied", "link")])
def test_without_either_event_a_weight_is_torn(tmp_path, device, slow):
    """The same delays that change nothing above find a race when one of the events is left out."""
    for seen in run_ranks(2, eager, tmp_path, device, slow, *SHAPES[0]):
        assert not all(seen["right"])


@torch.inference_mode()
def captured(rank: int, verify: bool, slow: str, *shape: object) -> dict:
    """Whether three replays of a captured forward, with eager ones between them, are right.

    With `verify` the first forward, outside the capture, looks at what has arrived.
    """
    stack = built("Gpu", slow, *shape, verify=verify)
    x = batch(0).clone()
    stack(x)  # outside: libraries set themselves up
    torch.cuda.synchronize()
    addresses = stack.addresses()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        said = stack(x)
    right = []
    for forward in range(3 + rank):  # one replays more often: nobody waits for the other
        x.copy_(batch(forward))
        stack.series.slots.poison()
        graph.replay()
        right.append(torch.equal(said, stack.unsharded(x)))
        right.append(torch.equal(stack(batch(9)), stack.unsharded(batch(9))))
    torch.cuda.synchronize()
    dist.barrier()
    return {"right": all(right), "moved": stack.addresses() != addresses}


@cases("shape", SHAPES)
@cases("slow", ["neither", "link", "compute"])
def test_a_captured_forward_pulls_when_it_is_replayed(tmp_path, shape, slow):
    for seen in run_ranks(2, captured, tmp_path, False, slow, *shape):
        assert seen == {"right": True, "moved": False}


@cases("shape", SHAPES)
def test_a_forward_is_captured_after_what_arrived_first_was_verified(tmp_path, shape):
    for seen in run_ranks(2, captured, tmp_path, True, "link", *shape):
        assert seen == {"right": True, "moved": False}


@torch.inference_mode()
def reloaded(rank: int, *shape: object) -> dict:
    """Whether a replay reads what both ranks have loaded since the last one."""
    stack = built("Gpu", "neither", *shape)
    x = batch(0).clone()
    stack(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        said = stack(x)
    right, addresses = [], {tuple(stack.addresses())}
    for _ in range(3):
        torch.cuda.synchronize()
        dist.barrier()  # nobody reads while anybody loads
        for position, weight in enumerate(stack.whole):
            stack.reload(position, -weight.roll(1, 0))
        torch.cuda.synchronize()
        dist.barrier()
        stack.series.slots.poison()
        graph.replay()
        right.append(torch.equal(said, stack.unsharded(x)))
        addresses.add(tuple(stack.addresses()))
    torch.cuda.synchronize()
    dist.barrier()
    return {"right": right, "addresses": len(addresses)}


@cases("shape", SHAPES)
def test_a_replay_pulls_what_was_reloaded(tmp_path, shape):
    for seen in run_ranks(2, reloaded, tmp_path, *shape):
        assert seen == {"right": [True] * 3, "addresses": 1}


@torch.inference_mode()
def activities(rank: int, *shape: object) -> list[str]:
    """The names of what the device did on any stream but the compute stream in a forward."""
    stack = built("Gpu", "neither", *shape)
    stack(batch(0))
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        for i in range(len(stack.linears)):
            stack.series.reach(i)
            stack.series.wait(i)
        torch.cuda.synchronize()
    dist.barrier()
    return sorted({event.name for event in profiled.events() if event.device_type.name == "CUDA"})


@cases("shape", SHAPES)
def test_a_pull_is_a_memcpy_and_no_kernel(tmp_path, shape):
    for names in run_ranks(2, activities, tmp_path, *shape):
        assert names, "the profiler saw nothing"
        assert all(name.startswith("Memcpy") for name in names), names
