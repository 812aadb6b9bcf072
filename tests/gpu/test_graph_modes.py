"""The graph modes of hosts, on one GPU: pieces, auxiliary streams, reloads, captures that fail.

One GPU plays rank 0 of two (one_gpu/copies.py). What travels between GPUs is not shown here.
"""

from __future__ import annotations

import torch

from gpu.cases import apart, cases
from one_gpu.copies import OneOfTwo
from one_gpu.graphs import Pieces, captured, failure_of, words_of
from one_gpu.stack import WIDTH, batch, delay
from vllm_layershard.errors import LayerShardError
from vllm_layershard.runtime.device import device_of

LONG_CYCLES = 20_000_000
"""About ten milliseconds: far longer than a copy or a GEMM here."""

SHAPES = [(5, 1), (5, 0), (7, 3), (2, 1)]
TWO_SHAPES = SHAPES[:2]
"""For cases that are a process each."""
SLOW = ["neither", "link", "compute"]


def one_of_two(num_layers: int, prefetch_step: int, slow: str = "neither") -> OneOfTwo:
    """Run once, so that libraries have set themselves up."""
    stack = OneOfTwo(device_of(torch.device("cuda", 0)), num_layers, prefetch_step)
    stack.transport.link_delay_cycles = LONG_CYCLES if slow == "link" else 0
    stack.compute_delay_cycles = LONG_CYCLES if slow == "compute" else 0
    stack(batch(0))
    torch.cuda.synchronize()
    return stack


def other_weights(stack: OneOfTwo, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for position in range(len(stack.linears)):
        weight = torch.randn(WIDTH, WIDTH, generator=generator) / 16
        stack.reload(position, weight.to(stack.whole[0].device))


@cases("num_layers, prefetch_step", SHAPES)
@cases("slow", SLOW)
@torch.inference_mode()
def test_pieces_are_replayed_between_eager_starts_and_waits(num_layers, prefetch_step, slow):
    stack = one_of_two(num_layers, prefetch_step, slow)
    addresses = stack.addresses()
    x = batch(0).clone()
    pieces = Pieces(stack, x)
    for forward in range(3):
        x.copy_(batch(forward))
        stack.series.slots.poison()
        stack.change_weights()
        assert torch.equal(pieces.replay(), pieces.unsharded(x))
        assert torch.equal(stack(batch(9)), stack.unsharded(batch(9))), "eager between replays"
    assert stack.addresses() == addresses
    assert stack.series.in_flight == ()


def beside(stack: OneOfTwo, aux: torch.cuda.Stream, x: torch.Tensor) -> torch.Tensor:
    """A forward whose linears wait and run on a stream beside the compute, as shared experts do."""
    main = torch.cuda.current_stream()
    for i, linear in enumerate(stack.linears):
        torch.ops.layershard.reach(x, f"gpu.{i}")
        aux.wait_stream(main)
        with torch.cuda.stream(aux):
            torch.ops.layershard.wait(x, f"gpu.{i}.linear")
            delay(stack.compute_delay_cycles)
            shared = linear(x)
        routed = torch.sin(x)
        main.wait_stream(aux)
        x = torch.tanh(shared + routed)
    return x


def beside_unsharded(stack: OneOfTwo, x: torch.Tensor) -> torch.Tensor:
    for weight in stack.whole:
        x = torch.tanh(torch.nn.functional.linear(x, weight) + torch.sin(x))
    return x


@cases("num_layers, prefetch_step", SHAPES)
@cases("slow", SLOW)
@torch.inference_mode()
def test_an_auxiliary_stream_may_wait_eagerly_and_captured(num_layers, prefetch_step, slow):
    stack = one_of_two(num_layers, prefetch_step, slow)
    aux = torch.cuda.Stream()
    x = batch(0).clone()
    beside(stack, aux, x)  # outside: the library sets itself up for this stream
    torch.cuda.synchronize()
    graph, said = captured(lambda: beside(stack, aux, x))
    for forward in range(3):
        x.copy_(batch(forward))
        stack.series.slots.poison()
        stack.change_weights()
        assert torch.equal(beside(stack, aux, x), beside_unsharded(stack, x)), "eager"
        stack.series.slots.poison()
        graph.replay()
        assert torch.equal(said, beside_unsharded(stack, x)), "replayed"


@cases("num_layers, prefetch_step", SHAPES)
@torch.inference_mode()
def test_a_reload_between_replays_is_what_the_next_one_reads(num_layers, prefetch_step):
    stack = one_of_two(num_layers, prefetch_step)
    addresses = stack.addresses()
    x = batch(0).clone()
    graph, said = captured(lambda: stack(x))
    pieces = Pieces(stack, x)
    former = None
    for seed in range(3):
        other_weights(stack, seed)
        stack.series.slots.poison()
        graph.replay()
        expected = stack.unsharded(x)
        assert torch.equal(said, expected)
        assert torch.equal(pieces.replay(), pieces.unsharded(x))
        assert torch.equal(stack(x), expected)
        assert former is None or not torch.equal(former, expected), "the weights were not others"
        former = expected.clone()
    assert stack.addresses() == addresses


@apart
@cases("num_layers, prefetch_step", TWO_SHAPES)
@torch.inference_mode()
def test_a_capture_that_ends_between_start_and_wait_is_an_error(num_layers, prefetch_step, rows):
    """What a breakable graph does at attention: the fork would be joined in another segment.

    With `prefetch_step` 0 a layer's `reach` and `wait` lie on both sides of attention, too.
    """
    stack = one_of_two(num_layers, prefetch_step)
    x = batch(0)
    moved = next(i for i in range(num_layers) if not stack.series.owns(i))

    def segment() -> None:
        for i in range(moved + 1):  # up to the first layer that is copied: its wait comes later
            torch.ops.layershard.reach(x, f"gpu.{i}")

    said = failure_of(segment)
    assert isinstance(said, (RuntimeError, LayerShardError)), "the fork was not joined, silently"
    rows({"said": words_of(said)})


@apart
@cases("num_layers, prefetch_step", TWO_SHAPES)
@torch.inference_mode()
def test_a_wait_in_a_piece_for_a_start_outside_is_an_error(num_layers, prefetch_step, rows):
    """What an opaque op does in PIECEWISE mode: `reach` ran eagerly, `wait` is captured."""
    stack = one_of_two(num_layers, prefetch_step)
    x = batch(0)
    moved = next(i for i in range(num_layers) if not stack.series.owns(i))
    for i in range(moved + 1):
        torch.ops.layershard.reach(x, f"gpu.{i}")

    def piece() -> None:
        torch.ops.layershard.wait(x, f"gpu.{moved}.linear")
        torch.tanh(stack.linears[moved](x))

    said = failure_of(piece)
    assert said is not None, "the wait was lost, silently"
    words = words_of(said)  # the end of the capture may fail after ours
    rows({"said": words})
    ours = f"HostError: layer {moved} of series 'linear'"
    assert any(one.startswith(ours) and "started outside a captured" in one for one in words), words


@apart
@cases("where", ["before the first start", "after the last wait"])
@cases("num_layers, prefetch_step", TWO_SHAPES)
@torch.inference_mode()
def test_an_eager_forward_after_a_failed_capture_is_right(num_layers, prefetch_step, where):
    stack = one_of_two(num_layers, prefetch_step)
    x = batch(0)

    def forbidden() -> None:
        torch.cuda.current_stream().synchronize()  # not while it is captured

    def forward() -> None:
        if where == "before the first start":
            forbidden()
        stack(x)
        forbidden()

    assert isinstance(failure_of(forward), (RuntimeError, LayerShardError))
    stack.series.slots.poison()
    assert torch.equal(stack(x), stack.unsharded(x))


@apart
@cases("num_layers, prefetch_step", TWO_SHAPES)
@torch.inference_mode()
def test_after_a_capture_that_failed_in_flight_no_wrong_bytes_are_served(
    num_layers, prefetch_step, rows
):
    """The movement's event is of a capture that is no more: right again, or an error by name."""
    stack = one_of_two(num_layers, prefetch_step)
    x = batch(0)

    def forward() -> None:
        torch.ops.layershard.reach(x, "gpu.0")
        torch.ops.layershard.reach(x, "gpu.1")
        torch.cuda.current_stream().synchronize()

    assert isinstance(failure_of(forward), (RuntimeError, LayerShardError))
    stack.series.slots.poison()
    try:
        said = stack(x)
    except LayerShardError as error:
        rows({"then": words_of(error)})
    else:
        assert torch.equal(said, stack.unsharded(x))
        rows({"then": "the next eager forward was right"})
