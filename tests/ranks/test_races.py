"""Generated interleavings of fetch, read and refill: never a torn or a stale weight.

Each rank runs its forwards by itself, on streams that dawdle at random; every read looks at the
whole weight twice. Without one of the two events some interleaving shows it.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from gloo.racing import Racing
from gloo.ranks import run_ranks
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import group_over
from vllm_layershard.runtime.transport import transport_of

FORWARDS = 3
ELEMENTS = 3000


class Weight(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((ELEMENTS,), float(layer + 1)), requires_grad=False)


def interleaved(rank: int, seeds: range, events: dict[str, bool]) -> list[str]:
    """What was read that should not have been, over all seeds."""
    return [wrong for seed in seeds for wrong in one_run(rank, seed, events)]


def one_run(rank: int, seed: int, events: dict[str, bool]) -> list[str]:
    draw = random.Random(seed)  # the same on every rank
    layers = draw.randint(2, 7)
    step = draw.randint(0, min(3, layers - 1))
    placement: Any = draw.choice(["round_robin", "striped"])
    slice_bytes = draw.choice([0, 512, 2000])
    group = group_over(None)
    device = Racing(97 * seed + rank, **events)
    layout = Series("linear", tuple(range(layers)), ELEMENTS * 4)
    (plan,) = build_plan([layout], group.size, step, placement).series
    transport = transport_of(plan, group, device, "pull", slice_bytes)
    loading = LoadingSeries(plan, group, device, transport)
    modules = [Weight(layer) for layer in range(layers)]
    for position, module in enumerate(modules):
        loading.adopt(position, module, ("weight",))
    series = loading.finish(plan)
    series.slots.poison()
    wrong: list[str] = []

    def read(forward: int, position: int) -> None:
        seen = modules[position].weight
        first = seen.clone()
        device.compute.dawdle()
        if not (torch.equal(first, seen) and bool((seen == position + 1).all())):
            wrong.append(f"seed {seed}, forward {forward}, layer {position}")

    for forward in range(FORWARDS):
        for position in range(layers):
            series.reach(position)
            series.wait(position)
            device.compute.give(lambda f=forward, p=position: read(f, p))
    device.synchronize()
    group.gather(None)  # nobody leaves while another still reads its memory
    return wrong


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 400), marks=pytest.mark.matrix(part="faults"))]
)
@pytest.mark.parametrize("size", [2, 3])
def test_no_interleaving_shows_a_torn_or_stale_weight(tmp_path, size, seeds):
    assert run_ranks(size, interleaved, tmp_path, seeds, {}) == [[]] * size


@pytest.mark.parametrize("event", ["consumed", "copied"])
def test_without_one_of_the_events_it_shows(tmp_path, event):
    found = run_ranks(2, interleaved, tmp_path, range(20), {event: False})
    assert all(len(wrong) > 0 for wrong in found)
