"""Device: the compute stream and the side stream of the place where weights live (CPU, CUDA, NPU).

The compute stream is where the model runs. Weights move on the side stream, in the order in which
they were started, after whatever the compute stream had been given until then.
"""

from __future__ import annotations

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from types import ModuleType
from typing import Any
from weakref import WeakSet

import torch

from vllm_layershard.errors import HostError


class Device(ABC):
    """One rank's device, with one side stream on which weights move."""

    backend: str
    """The torch.distributed backend that moves tensors of this device."""

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device

    def event(self) -> Any:
        """One that `enqueue` may record again and again; None where each work has its own."""
        return None

    @abstractmethod
    def enqueue(self, work: Callable[[], None], end: Any = None) -> Any:
        """Do `work` on the side stream, after all that the compute stream was given; its event.

        The event is past when all that `work` started is done. What `work` raises is raised here or
        where the event is joined. It is `end` where that is given. Whoever joins it from then on
        waits for this work, and not for the one before: join that one first.
        """

    def open_boundary(self) -> None:  # noqa: B027 - a CPU's side thread needs no order of streams
        """Until `close_boundary` the compute stream is given nothing that reads or writes a slot.

        So the side stream waits for it once, at the first of the movements that start meanwhile.
        """

    def close_boundary(self) -> None:  # noqa: B027 - likewise
        """The compute goes on: what starts later waits for it again."""

    @abstractmethod
    def join(self, event: Any) -> None:
        """Make the compute stream wait for `event`. On CUDA and NPU the CPU goes on."""

    @abstractmethod
    def synchronize(self) -> None:
        """Block the calling thread until the compute stream has done all it was given."""

    def is_capturing(self) -> bool:
        """Whether what the compute stream is given now goes into a graph. A CPU has none."""
        return False

    def private_format(self, tensor: torch.Tensor) -> str | None:
        """The name of a format of the device's own that the tensor is kept in; None for plain rows.

        The CPU and CUDA know none.
        """
        return None


class _Task:
    """Work for the side thread; also the event of its end."""

    __slots__ = ("done", "error", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: Exception | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.error = error
        finally:
            self.done.release()


class CpuDevice(Device):
    """CPU memory: the calling thread computes, a thread of its own is the side stream.

    One thread does one thing after another: the layer that is needed first has the whole link.
    """

    backend = "gloo"

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__(torch_device)
        self._forget_thread()
        _cpu_devices.add(self)

    def _forget_thread(self) -> None:
        """At birth, and in a forked child: threads stay behind, and the queue's lock with them."""
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def enqueue(self, work: Callable[[], None], end: Any = None) -> _Task:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="layershard-side", daemon=True)
            self._thread.start()
        task = _Task(work)
        self._tasks.put(task)
        return task

    def join(self, event: _Task) -> None:
        with event.done:
            if event.error is not None:
                raise event.error

    def synchronize(self) -> None:
        return None

    def _run(self) -> None:
        _leave_the_core_of_the_compute()
        with torch.inference_mode():
            while True:
                self._tasks.get().run()


_cpu_devices: WeakSet[CpuDevice] = WeakSet()


def _forget_threads() -> None:
    for device in _cpu_devices:
        device._forget_thread()


os.register_at_fork(after_in_child=_forget_threads)


def _leave_the_core_of_the_compute() -> None:
    """Let the calling thread run on every core that some thread of this process may run on.

    vLLM pins the thread that computes to one core, and what it starts inherits that: nothing would
    move while it computes.
    """
    if sys.platform != "linux":
        return
    cores: set[int] = set()
    with suppress(OSError):  # not allowed: then it stays
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it has just ended
                cores |= os.sched_getaffinity(int(thread))
        os.sched_setaffinity(0, cores)


class StreamDevice(Device):
    """CUDA or NPU: `accelerator` is `torch.cuda` or `torch.npu`, which share this interface.

    torch deals its 32 streams of each priority in turn, so that the side stream may be somebody
    else's, too. Those of another `priority` than 0, the default, are seldom asked for.
    """

    def __init__(
        self,
        torch_device: torch.device,
        accelerator: ModuleType,
        backend: str,
        *,
        priority: int = 0,
    ) -> None:
        super().__init__(torch_device)
        self.backend = backend
        self._accelerator = accelerator
        self._side = accelerator.Stream(device=torch_device, priority=priority)
        self._given = accelerator.Event()
        """Recorded anew for each boundary: a stream waits for what it had recorded by then."""
        self._at_boundary = False
        self._has_waited = False
        """Whether the side stream has waited at the boundary that is open."""

    def open_boundary(self) -> None:
        self._at_boundary = True

    def close_boundary(self) -> None:
        self._at_boundary = self._has_waited = False

    def event(self) -> Any:
        return self._accelerator.Event()

    def enqueue(self, work: Callable[[], None], end: Any = None) -> Any:
        if not self._has_waited:
            self._accelerator.current_stream(self.torch_device).record_event(self._given)
            self._side.wait_event(self._given)
            self._has_waited = self._at_boundary
        with self._accelerator.stream(self._side):
            work()
        return self._side.record_event(end)

    def join(self, event: Any) -> None:
        self._accelerator.current_stream(self.torch_device).wait_event(event)

    def synchronize(self) -> None:
        self._accelerator.synchronize(self.torch_device)

    def is_capturing(self) -> bool:
        return bool(self._accelerator.is_current_stream_capturing())


_PLAIN_FORMATS = (0, 2, 30)
"""NCHW, ND and NCDHW: what torch_npu gives memory that no kernel asked for, by its dimensions."""
_FORMAT_NAMES = {1: "NHWC", 3: "NC1HWC0", 4: "FRACTAL_Z", 27: "NDHWC", 29: "FRACTAL_NZ"}


class NpuDevice(StreamDevice):
    """An NPU: memory has a format, kept in its storage, that neither shape nor stride tells.

    Written against torch_npu's sources, and not run. Its csrc/framework/FormatHelper.cpp lists the
    formats and which of them are padded; numbers are aclFormat's (CANN, acl/acl_base.h).
    `empty_strided` always gives a plain one; `as_strided` of a padded one is an alias of its tiles.
    """

    def __init__(self, torch_device: torch.device, accelerator: ModuleType) -> None:
        super().__init__(torch_device, accelerator, "hccl")

    def private_format(self, tensor: torch.Tensor) -> str | None:
        from torch_npu import get_npu_format

        if tensor.device.type != self.torch_device.type:
            return None  # not loaded here, or in CPU memory
        number = int(get_npu_format(tensor))
        if number in _PLAIN_FORMATS:
            return None
        return f"{_FORMAT_NAMES.get(number, 'unknown')} ({number})"


def device_of(torch_device: torch.device) -> Device:
    """The device layer for a torch device.

    Raises:
        HostError: neither cpu, cuda nor npu.
    """
    if torch_device.type == "cpu":
        return CpuDevice(torch_device)
    if torch_device.type == "cuda":
        return StreamDevice(torch_device, torch.cuda, "nccl", priority=-1)
    if torch_device.type == "npu":
        return NpuDevice(torch_device, torch.npu)  # type: ignore[attr-defined]
    raise HostError(
        f"device {torch_device}: layer sharding moves weights on cpu, cuda and npu devices only"
    )
