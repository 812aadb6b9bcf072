"""`auto` of the manual API: two ranks on GPUs that reach each other pull, and all others broadcast.

The driver's answers are given here; the ranks, what they tell each other and the bytes are real.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gloo.ranks import run_ranks
from gloo.stack import Stack, forwards, shard
from vllm_layershard.manual import reach
from vllm_layershard.manual.reach import reach_each_other, whereabouts

ONE: dict[str, Any] = {"host": "a", "namespace": "n", "device": "g0", "reaches": ["g0", "g1"]}
OTHER: dict[str, Any] = ONE | {"device": "g1", "reaches": ["g1", "g0"]}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([ONE, OTHER], True),
        ([ONE, ONE], True),  # two ranks on one GPU
        ([ONE, OTHER | {"host": "b"}], False),
        ([ONE, OTHER | {"namespace": "m"}], False),
        ([ONE | {"reaches": ["g0"]}, OTHER], False),
        ([ONE, OTHER | {"reaches": ["g1"]}], False),
        ([ONE, None], False),
        ([None, None], False),
    ],
)
def test_two_reach_each_other_on_one_node_and_both_ways(told, expected):
    assert reach_each_other(told) == expected


def test_a_cpu_and_several_gpus_reach_nobody():
    assert whereabouts({torch.device("cpu")}) is None
    assert whereabouts({torch.device("cuda:0"), torch.device("cuda:1")}) is None
    assert whereabouts(set()) is None


@torch.inference_mode()
def transports(rank: int) -> list[tuple[str, bool]]:
    """With nothing, then with what the driver would say of two GPUs, or of one rank's only."""
    seen = []
    for told, options in (
        (None, {}),
        ((ONE, OTHER), {}),
        ((ONE, None), {}),
        ((ONE, OTHER), {"transport": "broadcast"}),
        ((ONE, OTHER), {"placement": "replicated"}),
        ((ONE, None), {"placement": "striped"}),
    ):
        if told is not None:
            answer = told[rank % 2]
            reach.whereabouts = lambda devices, answer=answer: answer  # type: ignore[assignment]
        stack = Stack(5, seed=7)
        series = shard(stack, 1, verify=True, **options)
        equal = forwards(rank, series, stack, 2)["equal"]
        seen.append((series.transport_name, equal == [True, True]))
    return seen


def test_both_ranks_choose_alike_and_compute_what_the_unsharded_stack_does(tmp_path):
    expected = ["broadcast", "pull", "broadcast", "broadcast", "broadcast", "pull"]
    for seen in run_ranks(2, transports, tmp_path):
        assert seen == [(name, True) for name in expected]


def test_three_ranks_broadcast_whatever_the_driver_says(tmp_path):
    for seen in run_ranks(3, transports, tmp_path):
        assert [name for name, _ in seen] == ["broadcast"] * 5 + ["pull"]
        assert all(equal for _, equal in seen)
