"""Host microseconds that a reach-and-wait pair costs, with a transport that does nothing.

Run: python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from result import Times, publish

from vllm_layershard.plan import Series, SeriesPlan, build_plan
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.transport import Ticket, Transport

LAYERS = 61
ROUNDS = 9
FORWARDS = 200
MOST_US = 15.0


class Arrived(Ticket):
    def __init__(self) -> None:
        return None

    def wait(self) -> None:
        return None


class Nowhere(Transport):
    name = "broadcast"

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(tensors)

    def open(self, plan: SeriesPlan, slots: SlotPool) -> None:
        return None

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        return None

    def start(self, position: int, slot: int) -> Arrived:
        return Arrived()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--smoke", action="store_true", help="a moment instead of seconds")
    parser.add_argument("--check", action="store_true", help="fail where the promise is missed")
    options = parser.parse_args()
    forwards = 2 if options.smoke else FORWARDS
    layer = Series("o_proj", tuple(range(LAYERS)), layer_bytes=4)
    (plan,) = build_plan([layer], group_size=2, prefetch_step=1).series
    device = CpuDevice(torch.device("cpu"))
    group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
    loading = LoadingSeries(plan, group, device, Nowhere())
    for position in range(LAYERS):
        loading.adopt(position, torch.nn.Linear(1, 1, bias=False), ("weight",))
    series = loading.finish(plan)
    for position in range(LAYERS):
        ops.bind(f"layers.{position}", f"layers.{position}.o_proj", ops.Place(series, position))
    x = torch.zeros(1)
    keys = [(f"layers.{p}", f"layers.{p}.o_proj") for p in range(LAYERS)]
    rounds_us = []
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        for _ in range(forwards):
            for layer_key, linear_key in keys:
                torch.ops.layershard.reach(x, layer_key)
                torch.ops.layershard.wait(x, linear_key)
        rounds_us.append((time.perf_counter_ns() - started) / 1000 / forwards / LAYERS)
    times = Times.of(rounds_us)
    row = {
        "pair_us": round(times.median, 2),
        "low_us": round(times.low, 2),
        "high_us": round(times.high, 2),
        "rounds": times.rounds,
    }
    publish("overhead", "A reach-and-wait pair on the host", tuple(row), [row], options.json)
    missed = times.median > MOST_US
    if missed:
        print(f"missed: {times.median:.1f} us a pair, at most {MOST_US:g}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
