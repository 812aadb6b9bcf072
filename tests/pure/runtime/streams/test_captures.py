"""Captures that fail, and waits that meet a movement of another: right afterwards, or named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from one_gpu.copies import OneOfTwo
from one_gpu.stack import WIDTH
from simulated.deferred import Deferred
from simulated.streams import Accelerator
from vllm_layershard.errors import HostError
from vllm_layershard.runtime.device import StreamDevice

LAYERS = 4
STEPS = (0, 1, 2)


class Fault(Exception):
    """Of the test."""


@pytest.fixture(params=STEPS)
def stack(request: pytest.FixtureRequest) -> OneOfTwo:
    device = StreamDevice(torch.device("cpu"), Accelerator(), "nccl")  # type: ignore[arg-type]
    return OneOfTwo(device, LAYERS, request.param)


def streams_of(stack: OneOfTwo) -> Accelerator:
    device = stack.transport.device
    assert isinstance(device, StreamDevice)
    return device._accelerator  # type: ignore[return-value]


def run(stack: OneOfTwo, work: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
    with torch.inference_mode(), Deferred(streams_of(stack)):
        said = work()
    streams_of(stack).synchronize()
    return said


def reach(x: torch.Tensor, layers: range) -> None:
    for layer in layers:
        torch.ops.layershard.reach(x, f"gpu.{layer}")


@pytest.mark.parametrize("reached", [1, 2, LAYERS])
def test_eager_forwards_after_a_capture_that_failed_are_right(stack, reached):
    x = torch.randn(2, WIDTH)

    def captured() -> None:
        with streams_of(stack).capture():
            reach(x, range(reached - 1))
            torch.ops.layershard.reach(x, f"gpu.{reached - 1}")
            raise Fault

    with pytest.raises(Fault):
        run(stack, captured)
    for _ in range(2):
        stack.series.slots.poison()
        said = run(stack, lambda: stack(x))
        assert torch.equal(said, stack.unsharded(x))
    assert stack.series.in_flight == ()


def test_a_drain_after_a_capture_that_failed_waits_for_nothing(stack):
    x = torch.randn(2, WIDTH)

    def captured() -> None:
        with streams_of(stack).capture():
            torch.ops.layershard.reach(x, "gpu.0")
            raise Fault

    with pytest.raises(Fault):
        run(stack, captured)
    stack.series.drain()
    assert stack.series.in_flight == ()


def test_a_wait_within_a_graph_for_a_start_outside_is_named(stack):
    """An op that hides its wait in a captured piece. CUDA would say a number."""
    x = torch.randn(2, WIDTH)
    reach(x, range(2))  # layer 1 is the other rank's
    with (
        pytest.raises(HostError, match=r"^layer 1 of series 'linear'.* was started outside a capt"),
        streams_of(stack).capture(),
    ):
        torch.ops.layershard.wait(x, "gpu.1.linear")


def test_a_wait_outside_for_a_start_within_a_graph_is_named(stack):
    """A breakable graph that ends between the two."""
    x = torch.randn(2, WIDTH)
    with streams_of(stack).capture():
        reach(x, range(2))
    with pytest.raises(HostError, match=r"^layer 1 of series 'linear'.* was started within a capt"):
        torch.ops.layershard.wait(x, "gpu.1.linear")
