"""The runtime on real streams: slow links, slow readers, and captured graphs. Needs one GPU."""

from __future__ import annotations

import torch

from gpu.cases import cases
from one_gpu.copies import OneOfTwo
from one_gpu.stack import batch
from vllm_layershard.runtime.device import device_of

LONG_CYCLES = 20_000_000
"""About ten milliseconds: far longer than a copy or a GEMM here."""

SHAPES = [(5, 1), (5, 0), (7, 3), (2, 1)]


def one_of_two(num_layers: int, prefetch_step: int) -> OneOfTwo:
    return OneOfTwo(device_of(torch.device("cuda", 0)), num_layers, prefetch_step)


@cases("num_layers, prefetch_step", SHAPES)
@cases("slow", ["neither", "link", "compute"])
@torch.inference_mode()
def test_a_delay_on_either_stream_changes_nothing(num_layers, prefetch_step, slow):
    stack = one_of_two(num_layers, prefetch_step)
    stack.transport.link_delay_cycles = LONG_CYCLES if slow == "link" else 0
    stack.compute_delay_cycles = LONG_CYCLES if slow == "compute" else 0
    for forward in range(3):
        stack.series.slots.poison()
        assert torch.equal(stack(batch(forward)), stack.unsharded(batch(forward)))


@torch.inference_mode()
def test_the_delays_find_a_race():
    """A transport that does not wait for a slot's last reader overwrites what is being read."""
    stack = one_of_two(7, 1)
    stack.compute_delay_cycles = LONG_CYCLES
    stack.transport.ordered = False
    torch.cuda.synchronize()
    assert not torch.equal(stack(batch(0)), stack.unsharded(batch(0)))
    torch.cuda.synchronize()


@cases("num_layers, prefetch_step", SHAPES)
@cases("slow", ["neither", "link", "compute"])
@torch.inference_mode()
def test_a_captured_forward_replays_with_the_weights_of_the_day(num_layers, prefetch_step, slow):
    stack = one_of_two(num_layers, prefetch_step)
    stack.transport.link_delay_cycles = LONG_CYCLES if slow == "link" else 0
    stack.compute_delay_cycles = LONG_CYCLES if slow == "compute" else 0
    x = batch(0).clone()
    stack(x)  # outside: libraries set themselves up
    torch.cuda.synchronize()
    addresses = stack.addresses()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        said = stack(x)
    for forward in range(3):
        x.copy_(batch(forward))
        stack.series.slots.poison()
        stack.change_weights()
        graph.replay()
        assert torch.equal(said, stack.unsharded(x))
        assert torch.equal(stack(batch(9)), stack.unsharded(batch(9))), "eager between replays"
    assert stack.addresses() == addresses
    assert stack.series.in_flight == ()
