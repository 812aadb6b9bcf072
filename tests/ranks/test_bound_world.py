"""A world that is bound to a device: torch makes new groups out of its communicator.

No GPU is here. gloo says that it can be split, too, and the binding is torch's own attribute.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _world

from gloo.ranks import run_ranks
from vllm_layershard.errors import HostError
from vllm_layershard.runtime.ranks.group import create_groups, group_over, private_group

WHERE = torch.device("cuda", 0)


def _bind() -> None:
    assert dist.group.WORLD is not None
    dist.group.WORLD.bound_device_id = WHERE


def _said(make: Any) -> str | None:
    try:
        make()
    except HostError as error:
        return str(error)
    return None


def private_groups(rank: int) -> list[str | None]:
    """Of a part of the world, over gloo and then as if over NCCL; of the whole world."""
    part, whole = dist.new_group([1, 2]), dist.new_group([0, 1, 2])
    _bind()
    said = [_said(lambda: private_group(group_over(whole)))]
    if rank > 0:
        said.append(_said(lambda: private_group(group_over(part))))
        _world.pg_backend_config[part] = "cpu:gloo,cuda:nccl"
        said.append(_said(lambda: private_group(group_over(part))))
    return said


def test_a_private_group_over_nccl_of_a_part_of_a_bound_world_is_refused(tmp_path):
    alone, *shared = run_ranks(3, private_groups, tmp_path)
    assert alone == [None]
    for whole, over_gloo, over_nccl in shared:
        assert whole is over_gloo is None
        assert "the ranks [1, 2] are a part of the world" in over_nccl
        assert "leave device_id out of init_process_group" in over_nccl


def groups_of_a_server(rank: int, sizes: tuple[tuple[int, ...], ...]) -> str | None:
    _bind()
    return _said(lambda: create_groups(list(sizes), "gloo", beside_others=True))


def test_a_server_that_splits_its_world_is_refused_where_ranks_share_in_parts(tmp_path):
    for said in run_ranks(2, groups_of_a_server, tmp_path, ((0,), (1,))):
        assert said is not None
        assert "unset VLLM_DISTRIBUTED_USE_SPLIT_GROUP" in said


def test_a_server_that_splits_its_world_may_share_over_all_of_it(tmp_path):
    assert run_ranks(2, groups_of_a_server, tmp_path, ((0, 1),)) == [None, None]
