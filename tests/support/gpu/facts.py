"""Facts: what a figure depends on besides the code. Run as a process of its own.

The process that starts the parts makes no context on a GPU: in an exclusive compute mode it would
keep the parts out.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from typing import Any

import torch

LIMIT_S = 90.0
SMI_LIMIT_S = 30.0
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


def facts() -> dict[str, Any]:
    """Of this machine. `gpus` is empty without a CUDA device; what nobody tells is "unknown"."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "nccl": _nccl(),
        "gpus": _seen() if torch.cuda.is_available() else [],
        "nvidia_smi": _smi(),
    }


def asked(limit_s: float = LIMIT_S) -> dict[str, Any]:
    """`facts()` by another process.

    If that fails there is no GPU for anybody: `gpus` is empty, and `failed` says why.
    """
    command = [sys.executable, "-m", "gpu.facts"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return {"gpus": [], "failed": f"the machine was not described within {limit_s:g} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"gpus": [], "failed": f"exit code {done.returncode}: {done.stderr[-1000:]}"}
    return found


def _nccl() -> str:
    try:
        return ".".join(map(str, torch.cuda.nccl.version()))
    except (AttributeError, RuntimeError):  # torch was built without
        return "none"


def _seen() -> list[dict[str, Any]]:
    """The devices that this process may use, as torch sees them."""
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(
            {
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
        )
    return found


def _smi() -> list[dict[str, str]] | str:
    """What nvidia-smi says of every device of the machine, also of those not visible here."""
    query = f"--query-gpu={','.join(_ASKED.values())}"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=SMI_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    if done.returncode != 0:
        return f"unknown (nvidia-smi: {(done.stdout + done.stderr).strip()[:200]})"
    return [
        dict(zip(_ASKED, (field.strip() for field in line.split(",")), strict=False))
        for line in done.stdout.splitlines()
    ]


if __name__ == "__main__":
    print(json.dumps(facts()))
