"""Predicted and measured time of a sharded stack of plain torch linears, over gloo.

Calibrates this machine, predicts a forward where the movement hides and one where the link is the
bound, and then runs both on two ranks of one thread each: the quickest of several forwards, as
calibrate takes the quickest round. Run: python benchmarks/prediction.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from vllm_layershard.estimate.broadcast import broadcast_seconds
from vllm_layershard.estimate.devices.profile_file import read_profile
from vllm_layershard.estimate.forwards.movements import movements
from vllm_layershard.estimate.forwards.overlap import Forward, TimedLayer, TimedOperation, simulate
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import Spread
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.manual import finish_loading, reach_layer, register_layer, wait_layer
from vllm_layershard.models import Operation
from vllm_layershard.plan import Series, build_plan

RANKS = 2
WIDTH = 1024
LAYERS = 12
FORWARDS = 40


@dataclass(frozen=True, slots=True)
class Regime:
    """`dense`: linears of a layer that stay on every rank, ahead of the one that is sharded."""

    name: str
    tokens: int
    dense: int


REGIMES = (Regime("hidden", 128, 2), Regime("link-bound", 1, 0))


def predicted(hardware: Hardware, regime: Regime) -> Forward:
    tokens = regime.tokens
    layer_bytes = WIDTH * WIDTH * 2
    seconds = broadcast_seconds(layer_bytes, Spread(RANKS, domains=1, in_a_domain=RANKS), hardware)
    roofline = Roofline(hardware, layer_bytes / seconds)
    moved = layer_bytes + 2.0 * tokens * 2 * WIDTH
    product = Operation("linear", 2.0 * tokens * WIDTH**2, moved, "bf16")
    alone, slowdown = roofline.seconds(product), roofline.slowdown(product)
    dense = (TimedOperation("", alone, slowdown),) * regime.dense
    layers = [
        TimedLayer(i, (*dense, TimedOperation("linear", alone, slowdown))) for i in range(LAYERS)
    ]
    series = Series("linear", tuple(range(LAYERS)), layer_bytes)
    plan = build_plan([series], RANKS, prefetch_step=1)
    prefixes = [[f"layers.{i}.linear" for i in range(LAYERS)]]
    moves = movements(plan, prefixes, lambda _: seconds)
    return simulate(layers, moves, hardware.broadcast_slowdown.value)


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )

    def linear() -> nn.Linear:
        return nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16)

    most = max(regime.dense for regime in REGIMES)
    layers = [([linear() for _ in range(most)], linear()) for _ in range(LAYERS)]
    for layer_id, (_, sharded) in enumerate(layers):
        register_layer(sharded, series="linear", layer_id=layer_id, prefetch_step=1)
    finish_loading("linear")
    times: dict[str, list[float]] = {regime.name: [] for regime in REGIMES}
    with torch.inference_mode():
        for turn in range(FORWARDS + 3):
            for regime in REGIMES:
                x = torch.randn(regime.tokens, WIDTH, dtype=torch.bfloat16)
                dist.barrier()
                started = time.perf_counter()
                for dense, sharded in layers:
                    reach_layer(sharded)
                    for one in dense[: regime.dense]:
                        one(x)
                    wait_layer(sharded)
                    sharded(x)
                took = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
                dist.all_reduce(took, op=dist.ReduceOp.MAX)
                if turn >= 3:
                    times[regime.name].append(took.item())
    if rank == 0:
        quickest = {name: min(seconds) for name, seconds in times.items()}
        Path(folder, "measured.json").write_text(json.dumps(quickest))
    dist.barrier()
    dist.destroy_process_group()


def measured() -> dict[str, float]:
    """Seconds of the quickest forward of each regime."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (folder,), nprocs=RANKS)
        found: dict[str, float] = json.loads(Path(folder, "measured.json").read_text())
    return found


def calibrated() -> Hardware:
    command = [sys.executable, "-m", "vllm_layershard.measure.calibrate"]
    command += ["--ranks", str(RANKS), "--backend", "gloo"]
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "here.json")
        profile.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return read_profile(str(profile))


def main() -> None:
    before = measured()
    hardware = calibrated()
    after = measured()
    for regime in REGIMES:
        forward = predicted(hardware, regime)
        seconds = min(before[regime.name], after[regime.name])
        print(
            json.dumps(
                {
                    "benchmark": "prediction",
                    "regime": regime.name,
                    "tokens": regime.tokens,
                    "compute_ms": round(forward.compute * 1e3, 2),
                    "fetch_ms": round(forward.fetch * 1e3, 2),
                    "stalled_ms": round(forward.stalled * 1e3, 2),
                    "predicted_ms": round(forward.total * 1e3, 2),
                    "measured_ms": round(seconds * 1e3, 2),
                    "off": f"{forward.total / seconds - 1:+.0%}",
                }
            )
        )


if __name__ == "__main__":
    main()
