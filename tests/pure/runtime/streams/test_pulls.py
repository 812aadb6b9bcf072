"""Pulls on simulated streams: each slot is read when its own copy is there, and no sooner."""

from __future__ import annotations

import pytest
import torch

from reloads.in_process import RANKS, Alone, Beside
from simulated.deferred import Deferred
from simulated.rank import gpu
from simulated.scenarios import ORDERS, STEPS
from simulated.streams import Accelerator, Order
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Pull

LAYERS = 6
FORWARDS = 3


def first_of_two(streams: Accelerator, step: int) -> ShardedSeries:
    """Rank 0's series. The weight of layer i is i + 1 everywhere."""
    (plan,) = build_plan([Series("o_proj", tuple(range(LAYERS)), 64)], 2, step).series
    stored: dict[int, dict[int, tuple[torch.Tensor, ...]]] = {}
    loading = []
    for rank in RANKS:
        group, device = Alone(rank), gpu(streams if rank == 0 else Accelerator())
        pull = Pull(group, device, Beside(rank, stored), 0)
        loading.append(LoadingSeries(plan, group, device, pull))
        for position in range(LAYERS):
            linear = torch.nn.Linear(4, 4, bias=False)
            torch.nn.init.constant_(linear.weight, position + 1.0)
            loading[rank].adopt(position, linear, ("weight",))
    mine, _ = [each.finish(plan) for each in loading]
    return mine


@pytest.mark.parametrize("step", STEPS)
def test_each_layer_reads_its_weight_in_any_order_of_the_streams(step: int) -> None:
    for order, seed in ORDERS:
        streams = Accelerator(order, seed)
        series, read = first_of_two(streams, step), []
        with torch.inference_mode(), Deferred(streams):
            for _ in range(FORWARDS):
                for position in range(LAYERS):
                    series.reach(position)
                    series.wait(position)
                    read.append(series.weights(position)["weight"].clone())
        streams.synchronize()
        said = [weight.unique().tolist() for weight in read]
        assert said == [[i + 1.0] for i in range(LAYERS)] * FORWARDS, (order, seed)


@pytest.mark.parametrize("order", ["compute first", "delayed"])
def test_the_copies_are_on_the_side_stream(order: Order) -> None:
    """The compute stream has no part in them: it would wait for each."""
    streams = Accelerator(order)
    series, given = first_of_two(streams, 1), []
    with torch.inference_mode(), Deferred(streams):
        for stream in streams.streams:
            give = stream.give
            stream.give = lambda work, s=stream, g=give: (given.append(s), g(work))[1]
        series.reach(0)
        series.reach(1)
    moved = [p for p in range(3) if not series.plan.is_resident(p, 0)]
    assert len(given) == len(moved)
    assert streams.current_stream() not in given


@pytest.mark.parametrize("step", STEPS)
def test_each_slot_has_an_event_of_its_own(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer would wait for the copies of later ones, too, if all slots had one."""
    streams = Accelerator()
    series, recorded = first_of_two(streams, step), []
    side = series.transport.device._side
    recording = side.record_event
    monkeypatch.setattr(
        side, "record_event", lambda event=None: (recorded.append(event), recording(event))[1]
    )
    with torch.inference_mode(), Deferred(streams):
        for position in range(LAYERS):
            series.reach(position)
            series.wait(position)
    streams.synchronize()
    schedule = series.plan.schedule
    pulled = [p for p in range(LAYERS) if not series.plan.is_resident(p, 0)]
    assert len(recorded) == len(pulled)
    slots = {schedule.slot[position] for position in pulled}
    assert len(set(recorded)) == len(slots)
