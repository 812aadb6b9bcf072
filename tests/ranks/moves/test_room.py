"""The communicator of the tokens takes its room in the first forward, which a host measures."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from gloo.moving import bind_moving
from gloo.ranks import run_ranks
from vllm_layershard.manual import LayerSharding
from vllm_layershard.plan.move import MoveRule

START = 8


def used_apart(rank: int, apart_too: bool, start: int) -> list[int]:
    """Collectives on the tokens' own process group, at the start of each of three forwards."""
    linears = [torch.nn.Linear(4, 4) for _ in range(3)]
    sharding = LayerSharding()
    for layer_id, each in enumerate(linears):
        sharding.add(each, layer_id=layer_id)
    sharding.finish()
    (series,) = sharding.series.values()
    apart = dist.new_group([0, 1])
    if apart_too:
        series.group = replace(series.group, apart=apart)
    bind_moving(series, linears, "moved", MoveRule("auto", start), lambda rows: (START, START))
    used = [apart._get_sequence_number_for_group()]
    for _ in range(3):
        torch.ops.layershard.reach(torch.zeros(START, 4), "layers.0")
        used.append(apart._get_sequence_number_for_group())
        series.drain()
    return [after - before for before, after in pairwise(used)]


@pytest.mark.parametrize(
    ("apart_too", "start", "first"),
    [(True, START, 2), (False, START, 0), (True, 1, 0)],
)
def test_the_first_forward_uses_the_tokens_communicator_once(apart_too, start, first, tmp_path):
    """None of them moves tokens. Nothing is used that weights have used, or that none will need."""
    found = run_ranks(2, used_apart, tmp_path, apart_too, start, limit_s=60)
    assert found == [[first, 0, 0]] * 2
