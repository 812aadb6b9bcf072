"""How much of the movement hides: a stack of layers on real ranks, against the ideal bound.

The device's compute is slept on a CPU, which leaves the cores to the ranks' gloo, and real GEMMs
on GPUs. For each ratio of fetch to compute, everybody runs in turn, round after round; a step is
the slowest rank's. Measured in the same rounds: the compute without movement, and the movement
without compute (four layers in flight). The bound is the longer one of the two; "predicted" is
what the planner's simulation says of the two.

A slept compute has to find a core again when it wakes, which a device's kernels need not: gloo's
threads give way to it (SCHED_IDLE). Run: python benchmarks/overlap.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contestants import CONTESTANTS, Contestant, LayerSharding, Sampled, Unsharded
from result import Times, publish
from torch.multiprocessing.spawn import spawn

from vllm_layershard.estimate.overlap import TimedLayer, TimedStep, movements, simulate
from vllm_layershard.plan import Series, build_plan

RATIOS = (0.25, 0.5, 1.0, 2.0)
STEPS = (0, 1, 2, 3)
WITHIN = 1.05


@dataclass(frozen=True, slots=True)
class Race:
    """One run: `layers` of `layer_bytes` each, everybody `rounds` times at each ratio."""

    ranks: int
    layers: int
    layer_bytes: int
    rounds: int
    ratios: tuple[float, ...] = RATIOS
    steps: tuple[int, ...] = STEPS


RACES = (Race(2, 24, 16 << 20, 7), Race(4, 24, 8 << 20, 7))
SMOKE = (Race(2, 6, 1 << 20, 1, ratios=(1.0,), steps=(0, 1)),)


def rank_main(rank: int, race: Race, folder: str) -> None:
    torch.set_num_threads(1)
    on_gpu = torch.cuda.device_count() >= race.ranks
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=race.ranks,
    )
    if on_gpu:
        torch.cuda.set_device(device)

    def stack() -> list[Sampled]:
        return [Sampled(i, race.layer_bytes, device) for i in range(race.layers)]

    unsharded = Unsharded("compute", 0, stack())
    link = LayerSharding("fetch", 3 if race.layers > 3 else 1, stack())
    others = [kind(n, step, stack()) for n, kind in CONTESTANTS.items() for step in race.steps]
    with torch.no_grad():
        expected = unsharded.forward(lambda: None).item()
        for one in (link, *others):
            for _ in range(2):
                found = one.forward(lambda: None).item()
                assert found == expected, f"{one.name}, step {one.step}: {found}, not {expected}"
        if not on_gpu:
            give_way()
        fetch_s = statistics.median(timed(link, lambda: None) for _ in range(9)) / race.layers
        times: dict[tuple[float, str, int], list[float]] = {}
        for ratio in race.ratios:
            half = halves(fetch_s / ratio, device)
            turns: list[tuple[Contestant, Callable[[], None]]] = [(unsharded, half)]
            turns += [(link, lambda: None)] * 3
            turns += [(one, half) for one in others]
            for _ in range(race.rounds):
                for one, compute in turns:
                    seconds = timed(one, compute)
                    times.setdefault((ratio, one.name, one.step), []).append(seconds)
    if rank == 0:
        torch.save(times, f"{folder}/times")
    dist.barrier()
    dist.destroy_process_group()


def give_way() -> None:
    """Let every thread of this process but the calling one yield its core at once."""
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != threading.get_native_id():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def halves(layer_s: float, device: torch.device) -> Callable[[], None]:
    """Half of a layer's compute, `layer_s / 2` of the device's time."""
    if device.type == "cpu":
        return lambda: time.sleep(layer_s / 2)
    a = torch.randn(2048, 2048, dtype=torch.bfloat16, device=device)

    def gemms(count: int) -> None:
        for _ in range(count):
            torch.mm(a, a)

    gemms(10)
    torch.cuda.synchronize()
    started = time.perf_counter()
    gemms(200)
    torch.cuda.synchronize()
    count = max(1, round(layer_s / 2 / ((time.perf_counter() - started) / 200)))
    return lambda: gemms(count)


def timed(contestant: Contestant, compute: Callable[[], None]) -> float:
    """Seconds of one forward on the slowest rank. Collective."""
    device = contestant.x.device
    dist.barrier()
    started = time.perf_counter()
    contestant.forward(compute)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    took = torch.tensor([time.perf_counter() - started], dtype=torch.float64, device=device)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return took.item()


def predicted(race: Race, step: int, compute_s: float, fetch_s: float) -> float:
    """What the planner's simulation says of a stack that takes these seconds, each alone."""
    series = Series("linear", tuple(range(race.layers)), race.layer_bytes)
    plan = build_plan([series], race.ranks, prefetch_step=step)
    names = [[f"layers.{i}.linear" for i in range(race.layers)]]
    half = TimedStep("", compute_s / race.layers / 2)
    layers = [TimedLayer(i, (half, TimedStep("linear", 0.0), half)) for i in range(race.layers)]
    return simulate(layers, movements(plan, names, lambda _: fetch_s / race.layers)).total


def raced(race: Race) -> list[dict[str, Any]]:
    """A row for each ratio, contestant and step."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (race, folder), nprocs=race.ranks)
        times = torch.load(f"{folder}/times")
    rows = []
    for (ratio, name, step), seconds in times.items():
        alone = {
            one: statistics.median(values)
            for (at, one, _), values in times.items()
            if at == ratio and one in ("compute", "fetch")
        }
        bound = max(alone.values())
        found = Times.of(seconds)
        ours = name == "layer sharding"
        guess = predicted(race, step, alone["compute"], alone["fetch"]) if ours else None
        rows.append(
            {
                "ranks": race.ranks,
                "fetch/compute": ratio,
                "who": name,
                "step": step,
                "step_ms": round(found.median * 1e3, 2),
                "low_ms": round(found.low * 1e3, 2),
                "high_ms": round(found.high * 1e3, 2),
                "over_bound": round(found.median / bound, 3),
                "predicted_ms": None if guess is None else round(guess * 1e3, 2),
                "rounds": found.rounds,
            }
        )
    return rows


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """Where layer sharding, at its best step, is not what it promises."""
    found = []
    for ranks, ratio in sorted({(row["ranks"], row["fetch/compute"]) for row in rows}):
        best = {
            who: min(
                row["over_bound"]
                for row in rows
                if (row["ranks"], row["fetch/compute"], row["who"]) == (ranks, ratio, who)
            )
            for who in CONTESTANTS
        }
        where = f"{ranks} ranks, fetch/compute {ratio}"
        ours = best.pop("layer sharding")
        if ours > WITHIN:
            found.append(f"{where}: {ours} of the bound")
        if ratio < 1:
            found += [f"{where}: {who} at {it}, {ours}" for who, it in best.items() if it < ours]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--check", action="store_true", help="fail where a promise is missed")
    options = parser.parse_args()
    rows = [row for race in (SMOKE if options.smoke else RACES) for row in raced(race)]
    columns = ("ranks", "fetch/compute", "who", "step", "step_ms", "low_ms", "high_ms",
               "over_bound", "predicted_ms")  # fmt: skip
    publish("overlap", "A forward against the ideal bound", columns, rows, options.json)
    missed = misses(rows)
    for miss in missed:
        print(f"missed: {miss}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
