"""Forwards on a device whose streams run late and in any order that waits and records allow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import npu
from simulated.rank import HERE, LAYERS, Rank, batch, gpu
from simulated.scenarios import ORDERS, SCENARIOS, STEPS, Results, TwoSeries, captured, faults
from simulated.streams import Accelerator, CaptureError, Event
from vllm_layershard.runtime.device import StreamDevice


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_every_order_that_is_allowed_is_right(
    scenario: Callable[[Accelerator, int], Results], step: int
) -> None:
    assert list(faults(scenario, step)) == []


def test_weights_move_on_the_side_stream_alone() -> None:
    """On the compute stream nothing would be wrong, and nothing would be hidden."""
    accelerator, seen = Accelerator(), []
    device, compute = gpu(accelerator), accelerator.current_stream()
    device.enqueue(lambda: seen.append(accelerator.current_stream()))
    assert seen == [device._side]
    assert accelerator.current_stream() is compute is not device._side


@pytest.mark.parametrize("step", STEPS)
def test_the_side_stream_waits_once_at_a_boundary(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many movements start there, of one series or of two."""
    both, waited = TwoSeries(Accelerator(), step), []
    side = both.device._side
    waiting = side.wait_event
    monkeypatch.setattr(side, "wait_event", lambda event: (waited.append(event), waiting(event)))
    both.stacks[0].results(lambda: [both(batch(0))])
    launches = both.stacks[0].series.plan.schedule.launches
    assert len(waited) == sum(1 for started in launches if started)
    both.device.enqueue(lambda: None)
    both.device.enqueue(lambda: None)
    assert len(waited) == sum(1 for started in launches if started) + 2, "each beyond boundaries"


@pytest.mark.parametrize("over_nccl", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_what_arrives_in_a_slot_is_waited_for_by_its_lasting_event(
    step: int, over_nccl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each slot, recorded anew by each movement: eager, captured, and eager again."""
    stack, x, recorded = Rank(Accelerator(), step, over_nccl=over_nccl), batch(0), []
    side = stack.series.transport.device._side
    recording = side.record_event

    def record(event: Event | None = None) -> Event:
        recorded.append(recording(event))
        return recorded[-1]

    monkeypatch.setattr(side, "record_event", record)
    stack.results(lambda: [stack(x)])
    captured(stack, x)
    stack.results(lambda: [stack(x)])
    assert len(recorded) == 3 * LAYERS
    assert len(set(recorded)) == stack.series.plan.schedule.num_slots


@pytest.mark.parametrize("step", STEPS)
def test_nccl_broadcasts_on_the_side_stream(step: int) -> None:
    """Not on a stream of its own, which both streams would wait for. Eager, and replayed."""
    for order, seed in ORDERS:
        accelerator = Accelerator(order, seed)
        stack, x = Rank(accelerator, step, over_nccl=True), batch(0)
        (said,) = stack.results(lambda: [stack(x)])  # noqa: B023 - called at once
        assert torch.equal(said, stack.unsharded(x))
        graph, said = captured(stack, x)
        for _ in range(2):
            (copy,) = stack.results(lambda: (graph.replay(), [said.clone()])[1])  # noqa: B023
            assert torch.equal(copy, stack.unsharded(x))
            stack.results(lambda: (stack.change_weights(), [])[1])  # noqa: B023
        assert (stack.nccl.sent, stack.nccl.on_own) == (2 * LAYERS, 0)


def test_the_ascend_device_runs_on_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with formats of its own brings its device, whose streams are these."""

    def npu_of(accelerator: Accelerator) -> StreamDevice:
        return npu.stand_in(HERE, accelerator)

    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))  # gone again afterwards
    for order, seed in ORDERS:
        accelerator = Accelerator(order, seed)
        stack, x = Rank(accelerator, 1, kind=npu_of), batch(0)
        (said,) = stack.results(lambda: [stack(x)])  # noqa: B023 - called at once
        assert torch.equal(said, stack.unsharded(x))


def test_a_capture_must_join_its_side_streams() -> None:
    """As cudaStreamEndCapture refuses it."""
    accelerator = Accelerator()
    device = gpu(accelerator)
    with pytest.raises(CaptureError, match="StreamCaptureUnjoined"), accelerator.capture():
        device.enqueue(lambda: accelerator.current_stream().give(lambda: None))
    with accelerator.capture() as graph:
        device.join(device.enqueue(lambda: accelerator.current_stream().give(lambda: None)))
    graph.replay()
    accelerator.synchronize()


def test_a_capture_and_what_is_outside_wait_for_nothing_of_each_other() -> None:
    accelerator = Accelerator()
    device = gpu(accelerator)
    outside = device.enqueue(lambda: None)
    with pytest.raises(CaptureError, match="StreamCaptureIsolation"), accelerator.capture():
        device.join(outside)
    with accelerator.capture():
        inside = device.enqueue(lambda: None)
    with pytest.raises(CaptureError, match="CapturedEvent"):
        device.join(inside)


def test_a_replay_takes_its_turn_on_the_stream() -> None:
    """After what came before it, and before what comes then; each time anew."""
    for order, seed in ORDERS:
        accelerator, said = Accelerator(order, seed), []
        with accelerator.capture() as graph:
            accelerator.current_stream().give(lambda: said.append("graph"))  # noqa: B023
        for turn in range(3):
            accelerator.current_stream().give(lambda turn=turn: said.append(turn))  # noqa: B023
            graph.replay()
        accelerator.synchronize()
        assert said == [0, "graph", 1, "graph", 2, "graph"]
