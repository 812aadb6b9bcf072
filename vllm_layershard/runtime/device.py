"""Device: the streams and events of the place where weights live (CPU, CUDA or NPU).

On the CPU there are no streams: work is done when the call returns, and an event is always past.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch

from vllm_layershard.errors import HostError


class Device(ABC):
    """One rank's device, with one side stream on which weights move."""

    backend: str
    """The torch.distributed backend that moves tensors of this device."""

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device

    @abstractmethod
    def fork(self) -> AbstractContextManager[Any]:
        """Run what follows on the side stream, after all that the compute stream was given."""

    @abstractmethod
    def record(self) -> Any:
        """An event at the present end of the current stream."""

    @abstractmethod
    def join(self, event: Any) -> None:
        """Make the compute stream wait for `event`; the host goes on."""

    @abstractmethod
    def synchronize(self) -> None:
        """Block the host until the device has done all it was given."""


class CpuDevice(Device):
    """Host memory: everything is in order already."""

    backend = "gloo"

    def fork(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def record(self) -> None:
        return None

    def join(self, event: Any) -> None:
        return None

    def synchronize(self) -> None:
        return None


class StreamDevice(Device):
    """CUDA or NPU: `accelerator` is `torch.cuda` or `torch.npu`, which share this interface."""

    def __init__(self, torch_device: torch.device, accelerator: ModuleType, backend: str) -> None:
        super().__init__(torch_device)
        self.backend = backend
        self._accelerator = accelerator
        self._side = accelerator.Stream(device=torch_device)

    def fork(self) -> AbstractContextManager[Any]:
        self._side.wait_event(self.record())
        return self._accelerator.stream(self._side)  # type: ignore[no-any-return]

    def record(self) -> Any:
        return self._accelerator.current_stream(self.torch_device).record_event()

    def join(self, event: Any) -> None:
        self._accelerator.current_stream(self.torch_device).wait_event(event)

    def synchronize(self) -> None:
        self._accelerator.synchronize(self.torch_device)


def device_of(torch_device: torch.device) -> Device:
    """The device layer for a torch device.

    Raises:
        HostError: neither cpu, cuda nor npu.
    """
    if torch_device.type == "cpu":
        return CpuDevice(torch_device)
    if torch_device.type == "cuda":
        return StreamDevice(torch_device, torch.cuda, "nccl")
    if torch_device.type == "npu":
        return StreamDevice(torch_device, torch.npu, "hccl")  # type: ignore[attr-defined]
    raise HostError(
        f"device {torch_device}: layer sharding moves weights on cpu, cuda and npu devices only"
    )
