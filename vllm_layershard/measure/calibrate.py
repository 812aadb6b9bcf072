"""Measures this machine and prints a hardware profile as JSON on stdout.

    python -m vllm_layershard.measure.calibrate --ranks 2 --backend gloo

Products, copies, broadcasts over a range of sizes, and then both together, since a broadcast and
the compute slow each other down (on a CPU they share the cores). Progress goes to stderr.
`layershard calibrate` runs this; the profile is for `layershard plan --hardware FILE`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

try:
    import torch
    import torch.distributed as dist
    from torch.multiprocessing.spawn import (
        ProcessExitedException,
        ProcessRaisedException,
        spawn,
    )

    from vllm_layershard.measure.bench import Bench, Effort, effort_for, run
except (ImportError, OSError) as error:
    sys.exit(f"layershard: calibrate needs torch, which cannot be imported ({error}); install it")
except RuntimeError as error:  # torch loads torch_npu by itself, which needs CANN
    sys.exit(
        f"layershard: calibrate needs torch, which cannot be imported ({error}); on an NPU run "
        "`source set_env.sh` of CANN first; without one set TORCH_DEVICE_BACKEND_AUTOLOAD=0"
    )

_TIMEOUT: Final = timedelta(minutes=5)
_DEVICE_OF: Final = {"gloo": "cpu", "nccl": "cuda", "hccl": "npu"}


def measure(rank: int, ranks: int, backend: str, effort: Effort, name: str, folder: str) -> None:
    """One rank; the first writes `profile.json` into `folder`."""
    kind = _DEVICE_OF[backend]
    device = torch.device(kind) if kind == "cpu" else torch.device(kind, rank)
    if kind == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    else:
        getattr(torch, kind).set_device(device)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=_TIMEOUT
    )
    bench = Bench(device, effort)
    with torch.inference_mode():
        found = run(bench, rank)
    if rank == 0:
        source = f"layershard calibrate: {ranks} ranks over {backend}, {name}"

        def figure(value: float) -> dict[str, Any]:
            return {"value": float(f"{value:.6g}"), "basis": "measured", "source": source}

        reached = {"value": 1, "basis": "measured", "source": "the rates are what was reached"}
        copied = 2 * (effort.copy_bytes // 8) / found.copy_s
        read = 2 * effort.width**2 / found.narrow_product_s
        profile = {
            "name": name,
            "memory_bytes": figure(_memory_bytes(device)),
            "memory_bandwidth": figure(max(copied, read)),
            "bf16": figure(2 * effort.tokens * effort.width**2 / found.product_s),
            "node_size": figure(ranks),
            "compute_efficiency": reached,
            # Of copies, the share that a product of one row reaches: it is bound by its weight.
            "memory_efficiency": figure(read / max(copied, read)),
            "product_slowdown": figure(found.product_beside[0]),
            "memory_slowdown": figure(found.copy_beside[0]),
            "broadcast_slowdown": figure(found.product_beside[1]),
            "broadcast": [
                {
                    "ranks": ranks,
                    "sizes": list(effort.sizes),
                    "seconds": [float(f"{value:.6g}") for value in found.broadcast_s],
                    "basis": "measured",
                    "source": source,
                }
            ],
        }
        Path(folder, "profile.json").write_text(json.dumps(profile, indent=2))
    dist.barrier()
    dist.destroy_process_group()


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(getattr(torch, device.type).mem_get_info(device)[1])


def _device_name(kind: str) -> str:
    if kind != "cpu":
        return str(getattr(torch, kind).get_device_name(0))
    return f"CPU with {len(os.sched_getaffinity(0))} cores"


def _backend(wanted: str, ranks: int) -> str:
    """The backend to use; ends the program where the devices for it are not there."""
    available = {"nccl": 0, "hccl": 0}
    if torch.cuda.is_available():
        available["nccl"] = torch.cuda.device_count()
    if hasattr(torch, "npu") and torch.npu.is_available():
        available["hccl"] = torch.npu.device_count()
    if wanted == "auto":
        wanted = next((name for name, count in available.items() if count), "gloo")
    if wanted != "gloo" and available[wanted] < ranks:
        _end(
            f"{wanted} needs {ranks} {_DEVICE_OF[wanted]} devices, this machine has "
            f"{available[wanted]}; give --ranks or --backend gloo"
        )
    return wanted


def _end(message: str) -> NoReturn:
    sys.exit(f"layershard: calibrate: {message}")


def main(arguments: list[str]) -> None:
    """Measure with as many ranks as asked for and print the profile."""
    parser = argparse.ArgumentParser(prog="layershard calibrate")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backend", choices=("auto", *_DEVICE_OF), default="auto")
    parser.add_argument("--name")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    backend = _backend(given.backend, given.ranks)
    kind = _DEVICE_OF[backend]
    name = given.name or _device_name(kind)
    with tempfile.TemporaryDirectory() as folder:
        work = (given.ranks, backend, effort_for(kind, given.quick), name, folder)
        try:
            spawn(measure, work, nprocs=given.ranks)
        except (ProcessRaisedException, ProcessExitedException) as error:
            last = str(error).strip().splitlines()[-1]
            _end(f"a rank failed: {last}")
        print(Path(folder, "profile.json").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
