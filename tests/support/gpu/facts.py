"""Facts: what a figure depends on besides the code. Run as a process of its own.

The process that starts the parts makes no context on a GPU: in an exclusive compute mode it would
keep the parts out. Each fact is told as soon as it is known, so that none is lost for another.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from lifeline import end_with

LIMIT_S = 40.0
SMI_LIMIT_S = 10.0
_LOOK_S = 0.2
_ASKED = {
    "name": "name",
    "driver": "driver_version",
    "mig": "mig.mode.current",
    "compute_mode": "compute_mode",
    "memory": "memory.total",
    "power_limit": "power.limit",
    "max_sm_clock": "clocks.max.sm",
}
"""Key of the row, and what nvidia-smi calls it."""

Facts = dict[str, Any]


def facts(tell: Callable[[Facts], None] = lambda fact: None) -> Facts:
    """Of this machine. `gpus` is empty without a CUDA device; what nobody tells is "unknown"."""
    found: Facts = {}
    for key, ask in _FACTS.items():
        try:
            found[key] = ask()
        except Exception as error:
            found[key] = f"unknown ({type(error).__name__}: {error})"
        tell({key: found[key]})
    return found


def asked(limit_s: float = LIMIT_S, stopped: Callable[[], bool] = lambda: False) -> Facts:
    """`facts()` by another process, until it ends, is out of time, or the run is `stopped`.

    What it did not come to is "unknown", and `failed` says why.
    """
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu.facts", str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return dict.fromkeys(_FACTS, "unknown") | {
            "failed": f"no process could be started: {error}"
        }
    end_s = time.monotonic() + limit_s
    failed = ""
    while True:
        try:
            told, said = process.communicate(timeout=_LOOK_S)
            break
        except subprocess.TimeoutExpired:
            if stopped() or time.monotonic() >= end_s:
                failed = f"the machine was not described within {limit_s:g} s"
                os.killpg(process.pid, signal.SIGKILL)  # it is not waited for yet, and still there
    found: Facts = {}
    for line in told.splitlines():
        try:
            found |= json.loads(line)
        except (TypeError, ValueError):  # half a line, or a library's own words
            continue
    lacking = [key for key in _FACTS if key not in found]
    if lacking and not failed:
        failed = f"exit code {process.returncode}: {said.decode(errors='replace')[-1000:]}"
    return found | dict.fromkeys(lacking, "unknown") | ({"failed": failed} if failed else {})


def how_many_gpus(machine: Facts) -> int | None:
    """As the facts have it; None where nobody could tell."""
    gpus = machine["gpus"]
    return len(gpus) if isinstance(gpus, list) else None


def _nccl() -> str:
    try:
        return ".".join(map(str, torch.cuda.nccl.version()))
    except (AttributeError, RuntimeError):  # torch was built without
        return "none"


def _seen() -> list[Facts]:
    """The devices that this process may use, as torch sees them."""
    if not torch.cuda.is_available():
        return []
    return [_device(index) for index in range(torch.cuda.device_count())]


def _device(index: int) -> Facts:
    try:
        device = torch.cuda.get_device_properties(index)
        return {
            "name": device.name,
            "uuid": str(device.uuid),
            "capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory_bytes": device.total_memory,
            "reaches": [
                other
                for other in range(torch.cuda.device_count())
                if other != index and torch.cuda.can_device_access_peer(index, other)
            ],
        }
    except (AttributeError, RuntimeError) as error:
        return {"unknown": f"{type(error).__name__}: {error}"}


def _smi() -> list[dict[str, str]] | str:
    """What nvidia-smi says of every device of the machine, also of those not visible here."""
    query = f"--query-gpu={','.join(_ASKED.values())}"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SMI_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        return f"unknown (nvidia-smi: {(done.stdout + done.stderr).strip()[:200]})"
    return [
        dict(zip(_ASKED, (field.strip() for field in line.split(",")), strict=False))
        for line in done.stdout.splitlines()
    ]


_FACTS: dict[str, Callable[[], Any]] = {
    "date": lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"),
    "system": lambda: f"{platform.system()} {platform.release()} {platform.machine()}",
    "python": platform.python_version,
    "torch": lambda: torch.__version__,
    "cuda": lambda: torch.version.cuda or "none",
    "nccl": _nccl,
    "gpus": _seen,
    "nvidia_smi": _smi,
}
"""In this order: the slowest is the last."""


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    facts(lambda fact: print(json.dumps(fact), flush=True))
