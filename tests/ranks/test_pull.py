"""Pulls and stripes on plain torch modules: real ranks, real shared memory, real bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gloo.ranks import run_ranks
from gloo.stack import Stack, forwards, shard
from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import group_over
from vllm_layershard.runtime.transport import transport_of

OPTIONS = [
    ("round_robin", "pull", 0),
    ("round_robin", "pull", 1000),
    ("striped", "auto", 0),
    ("striped", "pull", 300),
]


@torch.inference_mode()
def equal_outputs(rank: int, num_layers: int, step: int, *options: Any) -> dict[str, Any]:
    stack = Stack(num_layers, seed=7)
    placement, transport, slice_bytes = options
    series = shard(
        stack, step, verify=True, placement=placement, transport=transport, slice_bytes=slice_bytes
    )
    seen = forwards(rank, series, stack, 3 + rank)  # nobody waits for the others
    return seen | {"transport": series.transport_name, "names": list(shared_memory.mine)}


def every_option(rank: int, num_layers: int, step: int) -> list[dict]:
    """All in one start of the ranks: importing torch takes longer than each."""
    return [equal_outputs(rank, num_layers, step, *options) for options in OPTIONS]


@pytest.mark.parametrize(("size", "num_layers", "step"), [(2, 5, 1), (3, 7, 3), (4, 3, 0)])
def test_pulled_layers_compute_what_the_unsharded_stack_does(tmp_path, size, num_layers, step):
    for rank, found in enumerate(run_ranks(size, every_option, tmp_path, num_layers, step)):
        assert len(found) == len(OPTIONS)
        for seen in found:
            assert seen["equal"] == [True] * (3 + rank)
            assert seen["addresses"] == 1
            assert seen["resident"] == seen["ledger"].resident_bytes[rank]
            assert seen["slots"] == seen["ledger"].slot_bytes
            assert seen["transport"] == "pull"
            assert seen["in_flight"] == ()
            assert seen["names"] == [], "nobody else will come, so nothing is to be found"


class Processed(nn.Module):
    """Its quant method has left it a weight of another size than was loaded."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1000,), float(layer)), requires_grad=False)


@torch.inference_mode()
def cut_as_processed(rank: int) -> list[bool]:
    loaded, processed = (Series("linear", (0, 1, 2), nbytes) for nbytes in (512, 4000))
    plan, final = (
        build_plan([layers], 2, 1, "striped").series[0] for layers in (loaded, processed)
    )
    group, device = group_over(None), CpuDevice(torch.device("cpu"))
    loading = LoadingSeries(plan, group, device, transport_of(plan, group, device, "pull"))
    modules = [Processed(layer) for layer in range(3)]
    for position, module in enumerate(modules):
        loading.adopt(position, module, ("weight",))
    series = loading.finish(final)
    series.slots.poison()
    right = [series.resident_bytes() == final.ledger.resident_bytes[rank]]
    for position, module in enumerate(modules):
        series.reach(position)
        series.wait(position)
        right.append(bool((module.weight == position).all()))
    return right


def test_stripes_are_cut_from_what_the_quant_method_has_left(tmp_path):
    assert run_ranks(2, cut_as_processed, tmp_path) == [[True] * 4] * 2
