"""Memory of one process on a GPU as another one sees it, and memory that cannot be shared."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
import torch.distributed as dist

from gloo.ranks import RankError, run_ranks
from tests.gpu.test_pull import SHAPES, eager
from vllm_layershard.errors import NodeError
from vllm_layershard.runtime.peer_memory.cuda import CudaExports
from vllm_layershard.runtime.ranks.group import group_over


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


def in_expandable_segments(rank: int, *shape: object) -> dict:
    """What `eager` sees, of memory in such segments: set before the first allocation.

    A rank has the environment of the process that it was forked from, so that none is set there.
    """
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    segments = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    kinds = {s["is_expandable"] for s in torch.cuda.memory_snapshot() if s["total_size"] >= 1 << 26}
    del segments
    return eager(rank, "Gpu", "neither", *shape) | {"is_expandable": True in kinds}


def test_expandable_segments_are_pulled_or_refused_by_name(tmp_path, rows):
    """It depends on whether the processes may trace each other."""
    try:
        ranks = run_ranks(2, in_expandable_segments, tmp_path, *SHAPES[0])
    except RankError as error:
        if error.kind != "NodeError" or "expandable_segments" not in error.text:
            raise
        rows({"expandable_segments": f"refused: {error.text}"})
    else:
        assert all(seen["is_expandable"] for seen in ranks), "the setting had no effect"
        assert all(all(seen["right"]) for seen in ranks)
        rows({"expandable_segments": "pulled"})
