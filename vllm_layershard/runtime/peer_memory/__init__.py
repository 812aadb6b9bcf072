"""Memory that other ranks of the group may read: POSIX shared memory, CUDA IPC, ACL IPC."""

from __future__ import annotations

import hashlib
import re
import secrets

from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.peer_memory.base import Exports, Parts, Sizes
from vllm_layershard.runtime.peer_memory.posix import PosixExports
from vllm_layershard.runtime.ranks.group import Group

__all__ = ["Exports", "Parts", "PosixExports", "Sizes", "exports_of"]


def exports_of(device: Device, group: Group, series: str) -> Exports:
    """This rank's exports of one series, in whatever memory its device can share.

    In lockstep the names are new for each series that is made; replicas meet under the group's.

    Raises:
        NodeError: it can share none.
    """
    torch_device = device.torch_device
    if torch_device.type == "cuda":
        from vllm_layershard.runtime.peer_memory.cuda import CudaExports

        return CudaExports(group, torch_device)
    if torch_device.type == "npu":
        from vllm_layershard.runtime.peer_memory.npu import NpuExports

        return NpuExports(group, torch_device)
    name = secrets.token_hex(6) if group.lockstep else group.name
    return PosixExports(f"{name}-{file_name_of(series)}", group.ranks[group.group_rank])


def file_name_of(series: str) -> str:
    """What stands for a series in the names of its pieces: the manual API lets it have any name."""
    if re.fullmatch(r"[A-Za-z0-9@._-]{1,60}", series):
        return series
    return hashlib.sha256(series.encode(errors="surrogatepass")).hexdigest()[:32]
