"""Window: addresses of this process at which a piece of shared memory is seen."""

from __future__ import annotations

import ctypes
import mmap
import os
import warnings
import weakref
from typing import Any

import torch

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FIXED = 0x10
_MADV_DONTDUMP = 16
_FAILED = ctypes.c_void_p(-1).value


class Window:
    """A range of this process's addresses that shows a piece, and later perhaps another.

    A rank that is started again stores its weights in other pieces. Where they are seen never
    changes.
    """

    def __init__(self, nbytes: int) -> None:
        self._length = -(-max(1, nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._address = _map(None, self._length, 0, flags, -1)
        pages: Any = type("Pages", (ctypes.c_ubyte * max(1, nbytes),), {})
        self._shown = pages.from_address(self._address)
        end = weakref.finalize(self._shown, _LIBC.munmap, self._address, self._length)
        end.atexit = False  # the side thread may still be reading; the kernel unmaps

    def show(self, fd: int, *, writable: bool) -> None:
        """Show an open piece of (at least) the window's size from now on.

        A core file leaves it out: it would hold weights, also those of other ranks.
        """
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        _map(self._address, self._length, protection, mmap.MAP_SHARED | _MAP_FIXED, fd)
        # Where the kernel knows no such advice the file is only larger.
        _LIBC.madvise(self._address, self._length, _MADV_DONTDUMP)

    def part(self, start: int, nbytes: int) -> torch.Tensor:
        """[nbytes] of uint8 from byte `start` on, a storage of its own; keeps the range mapped.

        What shows a piece of another process must not be written: the kernel ends who tries.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(self._shown, dtype=torch.uint8, count=nbytes, offset=start)


def _map(address: int | None, length: int, protection: int, flags: int, fd: int) -> int:
    mapped: int | None = _LIBC.mmap(address, length, protection, flags, fd, 0)
    if mapped is None or mapped == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return mapped
