"""A forward that moves tokens, right after one that has started weights and never read them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from one_gpu.copies import OneOfTwo
from simulated.deferred import Deferred
from simulated.streams import Accelerator
from vllm_layershard.plan.move import MoveRule
from vllm_layershard.runtime.device import StreamDevice
from vllm_layershard.runtime.moves.series import MovingSeries

MANY, FEW = 8, 1
STEP = 1


class Fault(Exception):
    """Of the test."""


@pytest.fixture
def streams() -> Accelerator:
    return Accelerator()


@pytest.fixture
def moving(streams: Accelerator) -> MovingSeries:
    device = StreamDevice(torch.device("cpu"), streams, "nccl")  # type: ignore[arg-type]
    series = OneOfTwo(device, 4, STEP).series
    return MovingSeries(series, MoveRule("auto", MANY), lambda rows: (rows, rows))


def test_what_was_started_and_not_read_is_told_before_it(
    moving: MovingSeries, streams: Accelerator
) -> None:
    """So a host names a linear that the model reads past its quant method, whatever comes next."""
    told: list[Sequence[int]] = []
    moving.series.on_forward_start = told.append
    with Deferred(streams):
        moving.reach(0, MANY)
        started = moving.series.in_flight
        moving.reach(0, FEW)
    assert started
    assert told == [(), started]
    assert not moving.series.in_flight
    counters = moving.series.counters
    assert (counters.forwards, counters.activation_forwards) == (2, 1)


def test_the_first_forward_that_moves_weights_tries_the_largest_that_gathers(
    moving: MovingSeries, streams: Accelerator
) -> None:
    """Seven tokens on each of two ranks; no other forward tries it."""
    tried = []
    with Deferred(streams):
        for rows in (FEW, MANY, FEW, MANY):
            moving.reach(0, rows)
            tried.append(moving.rows_to_try)
    assert tried == [0, (MANY - 1) * 2, 0, 0]


@pytest.mark.parametrize("rule", [MoveRule("weights", None), MoveRule("auto", 1)])
def test_where_no_forward_gathers_none_is_tried(streams: Accelerator, rule: MoveRule) -> None:
    device = StreamDevice(torch.device("cpu"), streams, "nccl")  # type: ignore[arg-type]
    moving = MovingSeries(OneOfTwo(device, 4, STEP).series, rule, lambda rows: (rows, rows))
    with Deferred(streams):
        moving.reach(0, MANY)
    assert moving.moves_weights
    assert moving.rows_to_try == 0


def test_it_runs_after_a_capture_that_failed(moving: MovingSeries, streams: Accelerator) -> None:
    """What the capture had started never moves, and nobody waits for it."""

    def reach_and_fail() -> None:
        moving.reach(0, MANY)
        raise Fault

    with pytest.raises(Fault), Deferred(streams), streams.capture():
        reach_and_fail()
    with Deferred(streams):
        moving.reach(0, FEW)
    assert not moving.moves_weights
    assert not moving.series.in_flight
