"""Pulls on a GPU: how fast, what hides behind real GEMMs, what the copies cost them, and in graphs.

Two processes have one GPU together (or one each, where there are two). The second keeps all layers;
the first pulls them out of its memory, measures, and compares every forward with the whole stack's.
A row is a slice size and a ratio of fetch to compute; medians of the rounds:

- pull and plain: GB/s of bare copies from the peer's memory, and within one's own;
- moved by: what the profiler calls the copies. "Memcpy" says that no kernel of torch's did them,
  not whether the driver took a copy engine;
- done at: when a copy that starts shortly after a long GEMM is done, as a share of the GEMM's time.
  What runs on the multiprocessors gets none before the GEMM lets go, at about 1;
- slowdown: GEMMs while copies run all the time, over GEMMs alone;
- exposed: what a forward with pulls takes longer than the same compute with all weights in place,
  launched one by one, and as a captured graph.

Run: python benchmarks/pull_gpu.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from result import publish
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.profiler import ProfilerActivity, profile

from vllm_layershard.manual import finish_loading, reach_layer, register_layer, wait_layer
from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.peer_memory import exports_of
from vllm_layershard.runtime.ranks.group import group_over

TOKENS = 16
RATIOS = (0.25, 0.5, 0.75, 1.0)
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """`layers` linears of `width` squared in bfloat16; everything `rounds` times."""

    width: int
    layers: int
    rounds: int
    slices: tuple[int, ...]


FULL = Size(8192, 16, 15, (0, 16 * MIB, 4 * MIB, MIB))
SMOKE = Size(2048, 4, 2, (0, MIB))


def milliseconds(work: Callable[[], object]) -> float:
    """From when the current stream begins with the work until it has done it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


class Gemms:
    """Products of a size that fills the GPU for some microseconds."""

    def __init__(self, device: torch.device) -> None:
        self._a = torch.randn(1024, 1024, device=device).to(torch.bfloat16)
        self._b = torch.empty_like(self._a)
        self.run(100)
        self.one_ms = min(milliseconds(lambda: self.run(200)) / 200 for _ in range(5))

    def run(self, count: int) -> None:
        for _ in range(count):
            torch.mm(self._a, self._a, out=self._b)


class LongGemm:
    """One product that holds all multiprocessors for ten milliseconds and more."""

    def __init__(self, device: torch.device) -> None:
        self._a = torch.randn(16384, 16384, device=device).to(torch.bfloat16)
        self._b = torch.empty_like(self._a)
        self.run()

    def run(self) -> None:
        torch.mm(self._a, self._a, out=self._b)


class Bare:
    """A few layers in the peer's memory, as many in one's own, and windows to copy them into."""

    def __init__(self, rank: int, device: torch.device, size: Size) -> None:
        group = group_over(None)
        self._exports = exports_of(device_of(device), group, "bare")
        nbytes = 2 * size.width**2
        own = [torch.ones(nbytes, dtype=torch.uint8, device=device) for _ in range(4)]
        if rank == 1:
            self._exports.store(0, own)
        handles = group.gather(self._exports.handles())
        self.own = own
        self.theirs: Sequence[torch.Tensor] = own
        if rank == 0:
            stored = {0: tuple(line.numel() for line in own)}
            self.theirs = self._exports.open(group.ranks[1], handles[1], stored)[0]
        self._windows = [torch.empty_like(line) for line in own]
        self._side = torch.cuda.Stream(device)

    def copy(self, sources: Sequence[torch.Tensor], slice_bytes: int) -> None:
        """All of them into the first windows."""
        for window, source in zip(self._windows, sources, strict=False):
            most = slice_bytes or source.numel()
            for target, piece in zip(window.split(most), source.split(most), strict=True):
                target.copy_(piece, non_blocking=True)

    def done_at(self, gemm: LongGemm, slice_bytes: int) -> float:
        """See above; of one layer's copy."""
        began, ended, copied = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        began.record()
        gemm.run()
        ended.record()
        while not began.query():
            pass
        time.sleep(1e-3)
        with torch.cuda.stream(self._side):
            self.copy(self.theirs[:1], slice_bytes)
            copied.record()
        torch.cuda.synchronize()
        return began.elapsed_time(copied) / began.elapsed_time(ended)

    def gb_s(self, sources: Sequence[torch.Tensor], slice_bytes: int) -> float:
        return (
            sum(s.numel() for s in sources)
            / 1e6
            / milliseconds(lambda: self.copy(sources, slice_bytes))
        )

    def moved_by(self, slice_bytes: int) -> str:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            self.copy(self.theirs, slice_bytes)
            torch.cuda.synchronize()
        done = {e.name for e in profiled.events() if e.device_type.name == "CUDA"}
        return ", ".join(sorted(done))

    def slowdown(self, gemms: Gemms, slice_bytes: int) -> float:
        """Of GEMMs beside copies that begin before and end after them."""
        count = max(50, round(20 / gemms.one_ms))
        alone = milliseconds(lambda: gemms.run(count))
        times = 4 + round(4 * alone / milliseconds(lambda: self.copy(self.theirs, slice_bytes)))
        copied = torch.cuda.Event(enable_timing=True)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._side):
            for _ in range(times):
                self.copy(self.theirs, slice_bytes)
            copied.record()
        began.record()
        gemms.run(count)
        ended.record()
        torch.cuda.synchronize()
        assert ended.elapsed_time(copied) > 0, "the copies ended before the GEMMs"
        return began.elapsed_time(ended) / alone


class Stack:
    """Layers whose weights are pulled, and the same ones in place."""

    def __init__(self, rank: int, device: torch.device, size: Size, slice_bytes: int) -> None:
        generator = torch.Generator(device).manual_seed(7)
        width = size.width
        self.whole = [
            torch.randn(width, width, device=device, generator=generator).to(torch.bfloat16) / 64
            for _ in range(size.layers)
        ]
        self.linears = [
            nn.Linear(width, width, bias=False, device=device, dtype=torch.bfloat16)
            for _ in range(size.layers)
        ]
        self.x = torch.randn(TOKENS, width, device=device, generator=generator).to(torch.bfloat16)
        for i, (linear, weight) in enumerate(zip(self.linears, self.whole, strict=True)):
            linear.weight.data.copy_(weight)
            register_layer(
                linear,
                series=f"sliced{slice_bytes}",
                layer_id=2 * i + 1,  # odd: rank 1 owns all of them
                transport="pull",
                slice_bytes=slice_bytes,
            )
        finish_loading(f"sliced{slice_bytes}")
        assert rank == 1 or self.linears[0].weight.data_ptr() != self.whole[0].data_ptr()

    def pulled(self, half: Callable[[], None]) -> torch.Tensor:
        x = self.x
        for linear in self.linears:
            reach_layer(linear)
            half()
            wait_layer(linear)
            x = torch.tanh(linear(x))
            half()
        return x

    def in_place(self, half: Callable[[], None]) -> torch.Tensor:
        x = self.x
        for weight in self.whole:
            half()
            x = torch.tanh(nn.functional.linear(x, weight))
            half()
        return x

    def pulls(self) -> None:
        """The movements of a forward, and no compute."""
        for linear in self.linears:
            reach_layer(linear)
            wait_layer(linear)


def captured(forward: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of the forward, and where its replays leave the result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        said = forward()
    return graph, said


def row_of(stack: Stack, gemms: Gemms, ratio: float, rounds: int) -> dict[str, Any]:
    """Everything in turn, round after round.

    Raises:
        AssertionError: a forward with pulls says something else than the whole stack.
    """
    fetch = statistics.median(milliseconds(stack.pulls) for _ in range(rounds))
    linears = milliseconds(lambda: stack.in_place(lambda: None))
    spare = max(0.0, fetch / ratio - linears) / len(stack.linears) / 2
    count = max(1, round(spare / gemms.one_ms))

    def half() -> None:
        gemms.run(count)

    expected = stack.in_place(half).clone()
    assert torch.equal(stack.pulled(half), expected), "other bytes were pulled"
    torch.cuda.synchronize()
    in_place_graph, _ = captured(lambda: stack.in_place(half))
    pulled_graph, said = captured(lambda: stack.pulled(half))
    works: dict[str, Callable[[], object]] = {
        "compute": lambda: stack.in_place(half),
        "pulled": lambda: stack.pulled(half),
        "graph compute": in_place_graph.replay,
        "graph pulled": pulled_graph.replay,
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(milliseconds(work))
            if name == "graph pulled":
                assert torch.equal(said, expected), "a replay pulled other bytes"
    compute, pulled, graph_compute, graph_pulled = map(statistics.median, times.values())
    return {
        "fetch/compute": ratio,
        "fetch_ms": round(fetch, 3),
        "compute_ms": round(compute, 3),
        "pulled_ms": round(pulled, 3),
        "exposed_ms": round(pulled - compute, 3),
        "graph_ms": round(graph_pulled, 3),
        "graph exposed_ms": round(graph_pulled - graph_compute, 3),
        "rounds": rounds,
        "times": times,
    }


def measured(size: Size, device: torch.device, bare: Bare, stack: Stack, slice_bytes: int) -> Any:
    """All rows of a slice size."""
    gemms = Gemms(device)
    for sources in (bare.theirs, bare.own):
        bare.copy(sources, slice_bytes)
    pairs = [
        (bare.gb_s(bare.theirs, slice_bytes), bare.gb_s(bare.own, slice_bytes))
        for _ in range(size.rounds)
    ]
    pull, plain = (round(statistics.median(side), 1) for side in zip(*pairs, strict=True))
    slowdown = statistics.median(bare.slowdown(gemms, slice_bytes) for _ in range(size.rounds))
    long_gemm = LongGemm(device)
    done_at = [bare.done_at(long_gemm, slice_bytes) for _ in range(size.rounds)]
    del long_gemm
    shared = {
        "slice_MiB": slice_bytes / MIB or "whole",
        "pull GB/s": pull,
        "plain GB/s": plain,
        "moved by": bare.moved_by(slice_bytes),
        "done at": round(statistics.median(done_at), 2),
        "slowdown": round(slowdown, 3),
    }
    return [shared | row_of(stack, gemms, ratio, size.rounds) for ratio in RATIOS]


def rank_main(rank: int, size: Size, folder: str) -> None:
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = []
    with torch.inference_mode():
        bare = Bare(rank, device, size)
        for slice_bytes in size.slices:
            stack = Stack(rank, device, size, slice_bytes)
            if rank == 0:
                rows += measured(size, device, bare, stack, slice_bytes)
                print(f"pull_gpu: slices of {slice_bytes} bytes", file=sys.stderr, flush=True)
            dist.barrier()  # the second keeps its memory until the first has done
            del stack
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("pull_gpu: needs a CUDA device, and this machine has none", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (SMOKE if options.smoke else FULL, folder), nprocs=2)
        rows = json.loads(Path(folder, "rows.json").read_text())
    names = sorted(
        {torch.cuda.get_device_name(i) for i in range(min(2, torch.cuda.device_count()))}
    )
    where = f"{min(2, torch.cuda.device_count())} x {' and '.join(names)}"
    rows = [row | {"gpu": where, "cuda": torch.version.cuda} for row in rows]
    columns = [name for name in rows[0] if name not in ("rounds", "times", "gpu", "cuda")]
    publish("pull_gpu", f"Pulls on {where}, CUDA {torch.version.cuda}", columns, rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
