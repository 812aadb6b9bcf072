"""Two GPUs and more: the broadcasts of a boundary one after another, and as one NCCL group.

The weights are four of DeepSeek-V3's in fp8. Apart, the first has an event of its own; a group has
one, behind all. The communicator is bounded as the product's. See docs/adr/0016.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.on_gpu.products import ROUNDS, captured, milliseconds, spread
from gloo.ranks import run_ranks
from gpu.cases import cases, needs
from vllm_layershard.runtime.ranks.nccl import MAX_CTAS

SIZES = {
    "o_proj": 7168 * 16384,
    "q_b_proj": 24576 * 1536,
    "gate_up_proj": 4096 * 7168,
    "down_proj": 7168 * 2048,
}
MOST_RANKS = 8

Write = Callable[[dict[str, Any]], None]


@needs(gpus=2)
@cases("owners", ["one", "several"])
def bench_broadcasts_of_a_boundary(tmp_path: Path, rows: Write, owners: str) -> None:
    """At a forward's first boundary two layers start, which have `several` owners."""
    size = min(MOST_RANKS, torch.cuda.device_count())
    run_ranks(size, _measured, tmp_path, rows, owners)


class Boundary:
    """What starts there, on a communicator of its own."""

    def __init__(self, device: torch.device, roots: Sequence[int]) -> None:
        options = dist.ProcessGroupNCCL.Options()
        options.config.max_ctas = MAX_CTAS
        self._group = dist.new_group(backend="nccl", pg_options=options)
        self._device = device
        self._roots = roots
        self._weights = [
            torch.empty(size, dtype=torch.uint8, device=device) for size in SIZES.values()
        ]
        self._options = [_from(root) for root in roots]

    def apart(self, after_first: torch.cuda.Event | None = None) -> None:
        """One after another, on the current stream."""
        for weight, options in zip(self._weights, self._options, strict=True):
            self._group.broadcast([weight], options)
            if after_first is not None:
                after_first.record()
                after_first = None

    def grouped(self) -> None:
        """As one group, likewise."""
        self._group._start_coalescing(self._device)
        self.apart()
        work = self._group._end_coalescing(self._device)
        assert work is None, "without asyncOp it runs on the current stream"

    def check(self, send: Callable[[], None], rank: int) -> None:
        """That the owners' bytes come."""
        for weight in self._weights:
            weight.fill_(rank + 1)
        send()
        for weight, root in zip(self._weights, self._roots, strict=True):
            assert bool((weight == root + 1).all())


def _from(root: int) -> dist.BroadcastOptions:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor, options.asyncOp = root, 0, False
    return options


@torch.inference_mode()
def _measured(rank: int, rows: Write, owners: str) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    size = dist.get_world_size()
    boundary = Boundary(device, [i % size if owners == "several" else 0 for i in range(len(SIZES))])
    boundary.check(boundary.apart, rank)
    began, first = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first_ms = []
    for _ in range(ROUNDS):
        dist.barrier()
        began.record()
        boundary.apart(first)
        torch.cuda.synchronize()
        first_ms.append(began.elapsed_time(first))
    row: dict[str, Any] = {"rank": rank, "ranks": size, "owners": owners}
    row["first_apart_ms"] = spread(first_ms)
    for name, send in (("apart", boundary.apart), ("grouped", boundary.grouped)):
        boundary.check(send, rank)
        row[f"all_{name}_ms"] = spread(_rounds(send))
        row[f"calls_{name}_us"] = round(_calls_us(send), 1)
        graph, _ = captured(send)
        boundary.check(graph.replay, rank)
        row[f"replayed_{name}_ms"] = spread(_rounds(graph.replay))
    rows(row)
    torch.cuda.synchronize()


def _rounds(send: Callable[[], object]) -> list[float]:
    """What all of it takes, with all ranks side by side."""
    found = []
    for _ in range(ROUNDS):
        dist.barrier()
        found.append(milliseconds(send))
    return found


def _calls_us(send: Callable[[], object]) -> float:
    """What the calling thread does for it, in CPU time."""
    found = []
    for _ in range(ROUNDS):
        dist.barrier()
        started = time.thread_time_ns()
        send()
        found.append((time.thread_time_ns() - started) / 1000)
        torch.cuda.synchronize()
    return statistics.median(found)
