"""Two GPUs and more: NCCL broadcasts and products side by side, as the planner assumes them.

`contention` is by how much the products take longer, as in a hardware profile: 0.1 is a tenth.
Every rank runs the same products and takes part in the same broadcasts. Roots take turns, as owners
do.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.on_gpu.beside import beside
from benchmarks.on_gpu.products import ROUNDS, Products, milliseconds, spread
from gloo.ranks import run_ranks
from gpu.cases import cases, needs

LAYER_BYTES = 128 << 20
PRODUCTS_MS = 20.0
MOST_LAUNCHES = 300
MOST_RANKS = 8

Write = Callable[[dict[str, Any]], None]


@needs(gpus=2)
@cases("max_ctas", [0, 4, 8])
def bench_products_beside_broadcasts(tmp_path: Path, rows: Write, max_ctas: int) -> None:
    """`max_ctas` bounds the blocks that a broadcast takes; 0 leaves it to NCCL."""
    size = min(MOST_RANKS, torch.cuda.device_count())
    run_ranks(size, _measured, tmp_path, rows, max_ctas)


def _nccl_group(max_ctas: int) -> dist.ProcessGroup:
    options = dist.ProcessGroupNCCL.Options()
    if max_ctas:
        options.config.max_ctas = max_ctas
    return dist.new_group(backend="nccl", pg_options=options)


@torch.inference_mode()
def _measured(rank: int, rows: Write, max_ctas: int) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    group, size = _nccl_group(max_ctas), dist.get_world_size()
    side = torch.cuda.Stream(device)
    layer = torch.ones(LAYER_BYTES, dtype=torch.uint8, device=device)
    graph = Products(device).graph_of(PRODUCTS_MS)

    def broadcasts() -> None:
        for root in range(size):
            dist.broadcast(layer, src=root, group=group)

    broadcasts()
    torch.cuda.synchronize()
    turn_ms = _most(statistics.median(milliseconds(broadcasts) for _ in range(ROUNDS)))
    alone_ms = _most(statistics.median(milliseconds(graph.replay) for _ in range(ROUNDS)))
    times = min(MOST_LAUNCHES // size, 4 + math.ceil(4 * alone_ms / turn_ms))
    ratios, moved, uncovered = [], [], 0
    for _ in range(ROUNDS):
        alone = milliseconds(graph.replay)
        dist.barrier()
        found = beside(graph.replay, broadcasts, times, side)
        moved.append(times * size * LAYER_BYTES / 1e6 / found.moved_ms)
        if found.covered:
            ratios.append(found.products_ms / alone)
        else:
            uncovered += 1
    row: dict[str, Any] = {
        "rank": rank,
        "ranks": size,
        "max_ctas": max_ctas or "NCCL's own",
        "products_ms": round(alone_ms, 3),
        "broadcast_gb_s_alone": round(size * LAYER_BYTES / 1e6 / turn_ms, 1),
        "broadcast_gb_s_beside": spread(moved),
        "rounds_not_covered": uncovered,
    }
    if ratios:
        row |= {"slowdown": spread(ratios), "contention": round(statistics.median(ratios) - 1, 4)}
    rows(row)
    torch.cuda.synchronize()


def _most(value: float) -> float:
    """The largest of all ranks', so that all of them decide alike. Collective, over the CPU."""
    told = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return float(told)
