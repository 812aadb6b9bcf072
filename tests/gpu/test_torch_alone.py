"""The package with torch and nothing else, on the CPU: what must be right before a GPU is asked."""

from __future__ import annotations

from typing import Any

import torch

from gloo.ranks import run_ranks
from gloo.stack import Stack, forwards, shard
from gpu.cases import cases, needs


@torch.inference_mode()
def two_forwards(rank: int, transport: str, placement: str) -> dict[str, Any]:
    stack = Stack(5, seed=7)
    series = shard(stack, 1, transport=transport, placement=placement, verify=True)
    return forwards(rank, series, stack, 2)


@needs(gpus=0)
@cases("transport, placement", [("broadcast", "round_robin"), ("pull", "striped")])
def test_two_ranks_without_a_gpu_say_what_the_whole_stack_says(tmp_path, transport, placement):
    for seen in run_ranks(2, two_forwards, tmp_path, transport, placement):
        assert seen["equal"] == [True, True]
        assert seen["addresses"] == 1
