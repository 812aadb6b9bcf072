"""Memory of one process on a GPU as another one sees it, and memory that cannot be shared."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from gloo.ranks import RankError, run_ranks
from tests.gpu.test_pull import SHAPES, eager
from vllm_layershard.errors import NodeError
from vllm_layershard.runtime.peer_memory.cuda import CudaExports
from vllm_layershard.runtime.ranks.group import group_over

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: IPC")


def shared(rank: int) -> dict:
    """What this rank sees of the other's bytes, and what is said when it would share them on."""
    device, group, other = torch.device("cuda", 0), group_over(None), 1 - rank
    mine = CudaExports(group, device)
    weight = torch.full((300, 70), rank + 1, dtype=torch.bfloat16, device=device)
    (kept,) = mine.store(0, [weight])
    handles = group.gather(mine.handles())
    (part,) = mine.open(other, handles[other], {0: (weight.numel() * 2,)})[0]
    on = CudaExports(group, device)
    on.store(0, [part])
    try:
        on.handles()
    except NodeError as error:
        said = str(error)
    mine.check_peers()
    found = {
        "moved": kept.data_ptr() != weight.data_ptr(),
        "shape": tuple(part.shape),
        "dtype": part.dtype,
        "values": part.view(torch.bfloat16).unique().tolist(),
        "said": said,
    }
    dist.barrier()
    return found


def test_a_peers_bytes_are_seen_and_not_shared_on(tmp_path):
    for rank, found in enumerate(run_ranks(2, shared, tmp_path)):
        assert "received from another process" in found.pop("said")
        assert found == {
            "moved": False,
            "shape": (300 * 70 * 2,),
            "dtype": torch.uint8,
            "values": [2.0 - rank],
        }


def test_memory_of_another_allocator_is_refused_by_its_name():
    code = (
        "import torch; from vllm_layershard.runtime.ranks.group import RankGroup;"
        "from vllm_layershard.runtime.peer_memory.cuda import CudaExports;"
        "CudaExports(RankGroup((0, 1), 0, data=None, control=None), torch.device('cuda', 0))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
    )
    last = finished.stderr.strip().splitlines()[-1]
    assert "NodeError: rank 0: memory of torch's 'cudaMallocAsync' allocator" in last


def test_expandable_segments_are_pulled_or_refused_by_name(tmp_path, monkeypatch):
    """It depends on whether the processes may trace each other."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    try:
        ranks = run_ranks(2, eager, tmp_path, "Gpu", "neither", *SHAPES[0])
    except RankError as error:
        if error.kind != "NodeError" or "expandable_segments" not in error.text:
            raise
    else:
        assert all(all(seen["right"]) for seen in ranks)
