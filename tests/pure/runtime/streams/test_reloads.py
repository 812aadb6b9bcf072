"""Reloads of ranks that pull: none stores a weight while another's device may still read it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from reloads.in_process import MOST_S, RANKS, Alone, Beside, Places, together
from simulated.deferred import Deferred
from simulated.streams import Accelerator
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.device import CpuDevice, Device, StreamDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.reload import Reloads
from vllm_layershard.runtime.reload.act import Act
from vllm_layershard.runtime.transport import Pull

LAYERS = 4
CPU = torch.device("cpu")


def linear(value: float) -> torch.nn.Linear:
    module = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.constant_(module.weight, value)
    return module


class Ranks:
    """Two ranks that pull from each other, on these devices."""

    def __init__(self, devices: Sequence[Device]) -> None:
        (plan,) = build_plan([Series("o_proj", tuple(range(LAYERS)), 64)], 2, 1).series
        stored: dict[int, dict[int, tuple[torch.Tensor, ...]]] = {}
        loading = []
        for rank, device in zip(RANKS, devices, strict=True):
            group = Alone(rank)
            pull = Pull(group, device, Beside(rank, stored), 0)
            loading.append(LoadingSeries(plan, group, device, pull))
            for position in range(LAYERS):
                loading[rank].adopt(position, linear(0.0), ("weight",))
        self.series = [each.finish(plan) for each in loading]
        shown: dict[int, Any] = {}
        self.reloads = [
            Reloads(Act(Places(rank, shown), MOST_S), [self.series[rank]], devices[rank])
            for rank in RANKS
        ]

    def reload(self, value: float, late: Mapping[int, Accelerator] | None = None) -> None:
        """All at once; a rank that is `late` stores on its device, when that likes."""

        def reload(rank: int) -> None:
            new = [linear(value) for _ in range(LAYERS)]
            streams = (late or {}).get(rank)
            with self.reloads[rank].reloading(lambda: "the same"):
                for position, module in enumerate(new):
                    store = partial(self.series[rank].reload, position, module)
                    store() if streams is None else on(streams, store)

        assert together(*(partial(reload, rank) for rank in RANKS)) == [None, None]

    def forward(self, rank: int) -> list[torch.Tensor]:
        """What each layer reads, [4, 4]: it is there once the device has done all."""
        series, read = self.series[rank], []
        for position in range(LAYERS):
            series.reach(position)
            series.wait(position)
            read.append(series.weights(position)["weight"].clone())
        return read


def late() -> tuple[list[Accelerator], Ranks]:
    """Devices that do nothing before they are waited for."""
    streams = [Accelerator("compute first") for _ in RANKS]
    return streams, Ranks([StreamDevice(CPU, each, "nccl") for each in streams])  # type: ignore[arg-type]


def on(streams: Accelerator, work: Callable[[], Any]) -> Any:
    """Have the device do it when it likes."""
    with torch.inference_mode(), Deferred(streams):
        return work()


def values(read: Sequence[torch.Tensor]) -> list[float]:
    return [float(weight[0, 0]) for weight in read]


@pytest.mark.parametrize("behind", RANKS)
def test_a_forward_that_a_device_has_yet_to_run_reads_the_former_weights(behind: int) -> None:
    """Its CPU runs ahead, is asked to reload, and the other rank stores at once."""
    streams, ranks = late()
    read = on(streams[behind], lambda: ranks.forward(behind))
    ranks.reload(1.0)
    streams[behind].synchronize()
    assert values(read) == [0.0] * LAYERS


@pytest.mark.parametrize("behind", RANKS)
def test_a_rank_that_goes_on_reads_what_the_other_has_yet_to_store(behind: int) -> None:
    """A reload ends when the device has stored what it was given, and not before."""
    streams, ranks = late()
    ranks.reload(1.0, {behind: streams[behind]})
    ahead = 1 - behind
    read = on(streams[ahead], lambda: ranks.forward(ahead))
    streams[ahead].synchronize()
    assert values(read) == [1.0] * LAYERS


class Slow(CpuDevice):
    """Its side thread moves nothing before somebody waits for it."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.awaited = threading.Event()

    def enqueue(self, work: Callable[[], None], end: Any = None) -> Any:
        def moved() -> None:
            assert self.awaited.wait(MOST_S)
            work()

        return super().enqueue(moved, end)

    def join(self, event: Any) -> None:
        self.awaited.set()
        super().join(event)


@pytest.mark.parametrize("rank", RANKS)
def test_what_a_forward_has_started_and_never_read_arrives_before_a_reload(rank: int) -> None:
    """The CPU's side thread would read while the other rank stores."""
    ranks = Ranks([Slow(), Slow()])
    series = ranks.series[rank]
    for position in range(LAYERS):
        series.reach(position)
        if position < LAYERS - 2:
            series.wait(position)
    (unread,) = series.in_flight
    assert isinstance(series.transport, Pull)
    device = series.transport.device
    assert isinstance(device, Slow)
    device.awaited.clear()
    ranks.reload(1.0)
    series.drain()
    assert values([series.weights(unread)["weight"]]) == [0.0]
