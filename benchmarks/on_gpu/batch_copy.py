"""cudaMemcpyBatchAsync, which torch does not offer: called in the CUDA runtime that torch loaded.

Signature and layouts are those of driver_types.h and cuda_runtime_api.h of CUDA 12.8 to 13. CUDA 13
left out the argument that says which copy failed. It takes neither the legacy default stream nor a
stream that is captured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

DEFAULT = 0
PREFER_OVERLAP = 1
"""cudaMemcpyFlagPreferOverlapWithCompute: a hint to take copy engines."""
_STREAM_ORDER = 1
"""cudaMemcpySrcAccessOrderStream."""


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("order", ctypes.c_int),
        ("source", _Location),
        ("target", _Location),
        ("flags", ctypes.c_uint),
    )


class BatchError(Exception):
    """There is no such function here, or it refused."""


class BatchCopy:
    """Copies of the sources into the targets, as one call.

    Raises:
        BatchError: torch's CUDA runtime has no such function.
    """

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], flags: int) -> None:
        runtime = _runtime()
        try:
            self._call = runtime.cudaMemcpyBatchAsync
        except AttributeError:
            raise BatchError("the CUDA runtime has no cudaMemcpyBatchAsync") from None
        self._pairs = tuple(pairs)  # keeps the memory
        version = ctypes.c_int()
        runtime.cudaRuntimeGetVersion(ctypes.byref(version))
        count = len(self._pairs)
        self._attributes = _Attributes(_STREAM_ORDER, _Location(0, 0), _Location(0, 0), flags)
        pointers, sizes = ctypes.c_void_p * count, ctypes.c_size_t * count
        self._arguments = [
            pointers(*(target.data_ptr() for target, _ in self._pairs)),
            pointers(*(source.data_ptr() for _, source in self._pairs)),
            sizes(*(target.nbytes for target, _ in self._pairs)),
            ctypes.c_size_t(count),
            ctypes.byref(self._attributes),
            (ctypes.c_size_t * 1)(0),
            ctypes.c_size_t(1),
        ]
        if version.value < 13000:
            self._arguments.append(ctypes.byref(ctypes.c_size_t()))

    def __call__(self) -> None:
        """On the current stream, which must not be the default one.

        Raises:
            BatchError: the runtime refuses.
        """
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = self._call(*self._arguments, stream)
        if status != 0:
            raise BatchError(f"cudaMemcpyBatchAsync returned {status}")


def _runtime() -> ctypes.CDLL:
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split()[-1]
        if "libcudart" in path:
            return ctypes.CDLL(path)
    raise BatchError("torch has loaded no libcudart of its own")
