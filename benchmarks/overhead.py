"""Host microseconds that a reach-and-wait pair costs, with a transport that does nothing.

Run: python benchmarks/overhead.py
"""

from __future__ import annotations

import json
import platform
import statistics
import time

import torch

from vllm_layershard.plan import Series, build_plan
from vllm_layershard.runtime import ops
from vllm_layershard.runtime.device import CpuDevice
from vllm_layershard.runtime.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.transport import Ticket, Transport

LAYERS = 61
ROUNDS = 9
FORWARDS = 200


class Arrived(Ticket):
    def wait(self) -> None:
        return None


class Nowhere(Transport):
    def start(self, position: int, slot: int) -> Arrived:
        return Arrived()


def main() -> None:
    layer = Series("o_proj", tuple(range(LAYERS)), layer_bytes=4)
    (plan,) = build_plan([layer], group_size=2, prefetch_step=1).series
    device = CpuDevice(torch.device("cpu"))
    group = RankGroup((0, 1), 0, data=None, control=None)  # type: ignore[arg-type]
    series = ShardedSeries(plan, group, device)
    for position in range(LAYERS):
        linear = torch.nn.Linear(1, 1, bias=False)
        series.adopt(position, linear, ("weight",))
        ops.bind(f"layers.{position}", f"layers.{position}.o_proj", ops.Place(series, position))
    series.finish(plan)
    series._transport = Nowhere()
    x = torch.zeros(1)
    keys = [(f"layers.{p}", f"layers.{p}.o_proj") for p in range(LAYERS)]
    rounds_us = []
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        for _ in range(FORWARDS):
            for layer_key, linear_key in keys:
                torch.ops.layershard.reach(x, layer_key)
                torch.ops.layershard.wait(x, linear_key)
        rounds_us.append((time.perf_counter_ns() - started) / 1000 / FORWARDS / LAYERS)
    print(
        json.dumps(
            {
                "benchmark": "overhead",
                "pair_us_median": round(statistics.median(rounds_us), 2),
                "pair_us_min": round(min(rounds_us), 2),
                "pair_us_max": round(max(rounds_us), 2),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
