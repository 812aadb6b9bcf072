"""An NPU's part that matters for formats, on the CPU: a format beside each storage.

As in torch_npu's sources: the format belongs to the storage, views share it, memory that no kernel
asked for is ND, and neither shape nor stride nor `as_strided` tells it.
"""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from vllm_layershard.runtime.device import NpuDevice

ND, FRACTAL_NZ = 2, 29

_formats: dict[int, tuple[int, StorageWeakRef]] = {}
"""By address; a storage that is gone has left it to another, which is plain."""


def cast(tensor: torch.Tensor, number: int) -> torch.Tensor:
    """As npu_format_cast: the storage is in that format from now on."""
    storage = tensor.untyped_storage()
    _formats[storage.data_ptr()] = (number, StorageWeakRef(storage))
    return tensor


def _get_npu_format(tensor: torch.Tensor) -> int:
    number, storage = _formats.get(tensor.untyped_storage().data_ptr(), (ND, None))
    return ND if storage is None or storage.expired() else number


class _Stream:
    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = device

    def wait_event(self, event: Any) -> None:
        return None

    def record_event(self, event: object = None) -> object:
        return event or object()


def stand_in(torch_device: torch.device, accelerator: Any = None) -> NpuDevice:
    """The device; `torch_npu` is importable afterwards.

    Its streams do everything at once, unless an accelerator with others is given.
    """
    module = ModuleType("torch_npu")
    module.get_npu_format = _get_npu_format  # type: ignore[attr-defined]
    sys.modules["torch_npu"] = module
    at_once = SimpleNamespace(
        Stream=_Stream,
        Event=object,
        current_stream=_Stream,
        stream=contextlib.nullcontext,
        synchronize=lambda device: None,
    )
    return NpuDevice(torch_device, accelerator or at_once)  # type: ignore[arg-type]
