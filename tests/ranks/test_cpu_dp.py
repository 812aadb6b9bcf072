"""The two collectives that vLLM's CPU communicator lacks, over real ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist

from gloo.ranks import run_ranks


def communicator():
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    from vllm_layershard.hosts.cpu_dp import PATCHES, install

    for module in {patch.module for patch in PATCHES}:
        install(module)
    world = dist.group.WORLD
    return CpuCommunicator(world, torch.device("cpu"), world, unique_name="dp")


def rows_of(rank: int, count: int) -> torch.Tensor:
    return torch.arange(count * 3, dtype=torch.float32).reshape(count, 3) + 100 * rank


def gather(rank: int, sizes: list[int]) -> bool:
    mine = rows_of(rank, sizes[rank])
    one, other = communicator().all_gatherv([mine, -mine], dim=0, sizes=sizes)
    expected = torch.cat([rows_of(r, count) for r, count in enumerate(sizes)])
    return torch.equal(one, expected) and torch.equal(other, -expected)


def scatter(rank: int, sizes: list[int]) -> bool:
    mine = rows_of(rank, sum(sizes))
    start = sum(sizes[:rank])
    expected = sum(rows_of(r, sum(sizes)) for r in range(len(sizes)))[start : start + sizes[rank]]
    return torch.equal(communicator().reduce_scatterv(mine, dim=0, sizes=sizes), expected)


def both(rank: int) -> dict[str, bool]:
    return {
        "all_gatherv": gather(rank, [3, 1]),
        "all_gatherv, nothing from one": gather(rank, [0, 4]),
        "reduce_scatterv": scatter(rank, [3, 1]),
    }


def test_unequal_rows_are_concatenated_and_summed(tmp_path):
    for seen in run_ranks(2, both, tmp_path):
        assert set(seen.values()) == {True}, seen
