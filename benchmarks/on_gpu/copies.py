"""Bare pulls: how fast, by what, when beside a long product, and what they cost products.

Two processes have a GPU each, or one together; the row says which. On one GPU a copy within the
device may be a kernel of the driver's own. Such a row says nothing of two GPUs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_gpu.bare import LAYER_BYTES, LAYERS, Bare, between, device_for
from benchmarks.on_gpu.batch_copy import DEFAULT, PREFER_OVERLAP, BatchCopy, BatchError
from benchmarks.on_gpu.beside import beside
from benchmarks.on_gpu.products import ROUNDS, LongProduct, Products, captured, milliseconds, spread
from gloo.ranks import run_ranks
from gpu.cases import cases

MIB = 1 << 20
SLICES = [0, 16 * MIB, 4 * MIB, MIB]
PRODUCTS_MS = 20.0
MOST_LAUNCHES = 400

Row = dict[str, Any]
Write = Callable[[Row], None]


def bench_bandwidth(tmp_path: Path, rows: Write) -> None:
    run_ranks(2, _measured, tmp_path, "bandwidth", rows)


def bench_when_a_copy_beside_a_long_product_is_done(tmp_path: Path, rows: Write) -> None:
    run_ranks(2, _measured, tmp_path, "done_at", rows)


def bench_batch_copies(tmp_path: Path, rows: Write) -> None:
    run_ranks(2, _measured, tmp_path, "batch", rows)


@cases("slice_bytes", SLICES)
def bench_products_beside_pulls(tmp_path: Path, rows: Write, slice_bytes: int) -> None:
    run_ranks(2, _measured, tmp_path, "slowdown", rows, slice_bytes)


@torch.inference_mode()
def _measured(rank: int, what: str, rows: Write, *given: int) -> None:
    device = device_for(rank)
    bare = Bare(rank, device)
    measures = {
        "bandwidth": _bandwidth,
        "done_at": _done_at,
        "batch": _batch,
        "slowdown": _slowdown,
    }
    try:
        if rank == 0:
            measures[what](bare, device, lambda row: rows({"between": between()} | row), *given)
    finally:
        torch.cuda.synchronize()
        dist.barrier()  # the second keeps its memory until the first has done


def _gb_s(copy: Callable[[], object]) -> dict[str, float]:
    copy()
    return spread([LAYERS * LAYER_BYTES / 1e6 / milliseconds(copy) for _ in range(ROUNDS)])


def _bandwidth(bare: Bare, device: torch.device, rows: Write) -> None:
    """`moved_by` Memcpy says that no kernel of torch's did it, not what the driver took."""
    for slice_bytes in SLICES:

        def pull(slice_bytes: int = slice_bytes) -> None:
            bare.copy(bare.theirs, slice_bytes)

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            pull()
            torch.cuda.synchronize()
        did = {event.name for event in profiled.events() if event.device_type.name == "CUDA"}
        rows(
            {
                "slice_bytes": slice_bytes,
                "pull_gb_s": _gb_s(pull),
                "plain_gb_s": _gb_s(lambda most=slice_bytes: bare.copy(bare.own, most)),
                "moved_by": sorted(did),
            }
        )


def _done_after(product: LongProduct, side: torch.cuda.Stream, copy: Callable[[], object]) -> float:
    """When a copy that starts in a long product is done, as a share of the product's time.

    What runs on the multiprocessors gets none before the product lets go, at about 1.
    """
    began, ended, copied = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    began.record()
    product.run()
    ended.record()
    while not began.query():
        pass
    time.sleep(1e-3)
    with torch.cuda.stream(side):
        copy()
        copied.record()
    torch.cuda.synchronize()
    return began.elapsed_time(copied) / began.elapsed_time(ended)


def _done_at(bare: Bare, device: torch.device, rows: Write) -> None:
    product, side = LongProduct(device), torch.cuda.Stream(device)
    for slice_bytes in SLICES:
        taken = [
            _done_after(product, side, lambda most=slice_bytes: bare.copy(bare.theirs[:1], most))
            for _ in range(ROUNDS)
        ]
        rows({"slice_bytes": slice_bytes, "done_at": spread(taken)})


def _batch(bare: Bare, device: torch.device, rows: Write) -> None:
    product, side = LongProduct(device), torch.cuda.Stream(device)
    for slice_bytes in SLICES:
        for name, flags in (("default", DEFAULT), ("prefer overlap", PREFER_OVERLAP)):
            row: Row = {"slice_bytes": slice_bytes, "flags": name}
            try:
                whole = BatchCopy(bare.pairs(bare.theirs, slice_bytes), flags)
                one = BatchCopy(bare.pairs(bare.theirs[:1], slice_bytes), flags)
                with torch.cuda.stream(side):
                    row["pull_gb_s"] = _gb_s(whole)
                taken = [_done_after(product, side, one) for _ in range(ROUNDS)]
                row["done_at"] = spread(taken)
            except BatchError as error:
                row["not_measured"] = str(error)
            rows(row)


def _slowdown(bare: Bare, device: torch.device, rows: Write, slice_bytes: int) -> None:
    """Products while copies run all the time, over the same products alone."""
    side = torch.cuda.Stream(device)
    products = Products(device).graph_of(PRODUCTS_MS)
    bare.copy(bare.theirs, slice_bytes)
    torch.cuda.synchronize()
    copies, _ = captured(lambda: bare.copy(bare.theirs, slice_bytes))
    copies.replay()
    copy_ms = milliseconds(copies.replay)
    ratios, uncovered = [], 0
    for _ in range(ROUNDS):
        alone = milliseconds(products.replay)
        times = min(MOST_LAUNCHES, 4 + math.ceil(4 * alone / copy_ms))
        found = beside(products.replay, copies.replay, times, side)
        if found.covered:
            ratios.append(found.products_ms / alone)
        else:
            uncovered += 1
    row: Row = {
        "slice_bytes": slice_bytes,
        "products_ms": round(alone, 3),
        "copy_gb_s_alone": round(LAYERS * LAYER_BYTES / 1e6 / copy_ms, 1),
        "rounds_not_covered": uncovered,
    }
    if ratios:
        row |= {"slowdown": spread(ratios), "contention": round(statistics.median(ratios) - 1, 4)}
    rows(row)
