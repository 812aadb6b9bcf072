"""A series whose transport fails says what was moving."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from vllm_layershard.errors import TransportError
from vllm_layershard.plan import Series, SeriesPlan, build_plan
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.transport import Ticket, Transport

LAYERS = 5


class Breaking(Transport):
    """Everything arrives but for one position, which fails on the side thread."""

    name = "broadcast"

    def __init__(self, device: CpuDevice, broken: int) -> None:
        self.device, self.broken = device, broken

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(tensors)

    def open(self, plan: SeriesPlan, slots: SlotPool) -> None:
        return None

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        return None

    def start(self, position: int, slot: int) -> Ticket:
        def move() -> None:
            if position == self.broken:
                raise RuntimeError("connection reset")

        return Ticket(self.device, self.device.enqueue(move))


@pytest.fixture
def breaks_at_2() -> ShardedSeries:
    device = CpuDevice(torch.device("cpu"))
    (plan,) = build_plan([Series("o_proj", tuple(range(LAYERS)), 4)], 2, 1).series
    group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
    loading = LoadingSeries(plan, group, device, Breaking(device, broken=2))
    for position in range(LAYERS):
        loading.adopt(position, torch.nn.Linear(1, 1, bias=False), ("weight",))
    series = loading.finish(plan)
    for position in (0, 1):
        series.reach(position)
        series.wait(position)
    series.reach(2)
    return series


def test_what_is_waited_for_is_named(breaks_at_2):
    with pytest.raises(TransportError, match=r"layer 2 of series 'o_proj', owned by rank 0, could"):
        breaks_at_2.wait(2)


def test_what_nobody_waited_for_is_named_where_its_slot_is_next_used(breaks_at_2):
    """A forward may skip a linear: the next movement into the slot, of layer 4, is not at fault."""
    with pytest.raises(TransportError, match=r"layer 2 of series 'o_proj', owned by rank 0, could"):
        breaks_at_2.reach(3)
