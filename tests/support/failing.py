"""Failing: the system calls of some modules, of which the n-th fails; n = 1, 2, ... until none did.

As SQLite tests itself. The seam is how a module reaches the system: by its own names `os`, `fcntl`
and `_LIBC`. Here they become stand-ins, which count the calls of these modules and of no others. A
function that is in no table below is an error, so that no call goes unseen.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import pytest

_NO_FILE = (errno.ENOENT, errno.EACCES)
_NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EIO)

CALLS: dict[str, tuple[int, ...]] = {
    "open": (*_NO_FILE, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.ENOSPC, errno.EOPNOTSUPP,
             errno.EAGAIN, errno.EEXIST, errno.EIO, errno.ENOMEM),
    "close": (errno.EIO, errno.ENOSPC),
    "fstat": (errno.EIO,),
    "lstat": (*_NO_FILE, errno.EIO),
    "stat": (*_NO_FILE, errno.EIO),
    "statvfs": (*_NO_FILE, errno.EIO),
    "posix_fallocate": (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EOPNOTSUPP),
    "ftruncate": (errno.EFBIG, errno.EIO),
    "pread": (errno.EIO,),
    "pwrite": (errno.ENOSPC, errno.EIO),
    "read": (errno.EIO, errno.EAGAIN, errno.EISDIR),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "link": (errno.EEXIST, errno.ENOENT, errno.EMLINK, *_NO_ENTRY),
    "linkat": (errno.EEXIST, errno.ENOENT, *_NO_ENTRY),
    "rename": (errno.ENOENT, errno.EISDIR, *_NO_ENTRY),
    "replace": (errno.ENOENT, errno.EISDIR, *_NO_ENTRY),
    "unlink": (errno.ENOENT, errno.EISDIR, *_NO_ENTRY),
    "makedirs": (errno.ENOTDIR, errno.EEXIST, *_NO_ENTRY),
    "listdir": (*_NO_FILE, errno.EMFILE, errno.EIO),
    "scandir": (*_NO_FILE, errno.EMFILE, errno.EIO),
    "lockf": (errno.EAGAIN, errno.EACCES, errno.ENOLCK, errno.EOPNOTSUPP),
    "fcntl": (errno.EINVAL, errno.ENOLCK),
    "mmap": (errno.ENOMEM, errno.EACCES, errno.ENODEV),
}  # fmt: skip
"""What may keep each call from its work, on Linux."""

PLAIN = frozenset(
    {"getpid", "geteuid", "uname", "fsencode", "strerror", "register_at_fork", "madvise", "munmap"}
)
"""Functions that do not fail, or whose failure changes nothing."""


class Fault(NamedTuple):
    """The `nth` call fails with the `code`th of its errors; `for_good`: so do all like it later."""

    nth: int
    code: int
    for_good: bool


class Outcome(NamedTuple):
    """The call that failed, if one did, and the error that came of it; "" if none did."""

    failed: str | None
    told: str


class System:
    """What stands between some modules and the system for one run."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._calls = 0
        self._refused: str | None = None
        self.struck: tuple[str, int] | None = None
        """The call that failed, and its errno."""

    def call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self._calls += 1
        if self._calls == self._fault.nth:
            self.struck = (name, CALLS[name][self._fault.code])
            self._refused = name if self._fault.for_good else None
        elif self._refused != name:
            return function(*args, **options)
        assert self.struck is not None
        code = self.struck[1]
        if name == "close":  # as Linux does: the descriptor is gone all the same
            function(*args)
        if name in ("linkat", "mmap"):
            ctypes.set_errno(code)
            return ctypes.c_void_p(-1).value if name == "mmap" else -1
        raise OSError(code, os.strerror(code), str(args[0]) if args else None)

    def last_code(self) -> bool:
        """Whether the call that failed has no error that was not tried."""
        assert self.struck is not None
        return self._fault.code + 1 == len(CALLS[self.struck[0]])

    @contextmanager
    def between(self, modules: Sequence[ModuleType]) -> Iterator[None]:
        """Stand there."""
        with pytest.MonkeyPatch.context() as patch:
            for module in modules:
                for name in ("os", "fcntl", "_LIBC"):
                    if hasattr(module, name):
                        patch.setattr(module, name, _StandIn(getattr(module, name), self))
            yield


class _StandIn:
    """For a module of the system's calls, or the C library."""

    def __init__(self, real: Any, system: System) -> None:
        self._real, self._system = real, system

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name == "scandir":
            return lambda path: _Entries(path, self._system)
        if name in CALLS:
            return lambda *args, **options: self._system.call(name, found, *args, **options)
        if not callable(found) or isinstance(found, type) or name in PLAIN:
            return found
        raise AssertionError(f"{name}: is it a system call that may fail? Say so in failing.py")


class _Entries:
    """The entries of a directory: to open it and to look at each may fail."""

    def __init__(self, path: Any, system: System) -> None:
        self._entries = system.call("scandir", os.scandir, path)
        self._system = system

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.close()

    def __iter__(self) -> Iterator[_Entry]:
        return (_Entry(entry, self._system) for entry in self._entries)


class _Entry:
    def __init__(self, entry: os.DirEntry[str], system: System) -> None:
        self.name = entry.name
        self._entry, self._system = entry, system

    def stat(self, **options: Any) -> os.stat_result:
        found: os.stat_result = self._system.call("lstat", self._entry.stat, **options)
        return found


def each_fault(
    modules: Sequence[ModuleType],
    act: Callable[[], None],
    allowed: tuple[type[Exception], ...],
    after: Callable[[Outcome], None],
    *,
    for_good: bool,
) -> set[str]:
    """Let every call of `act` fail in turn; the names of those that did.

    `act` ends well or with one of the `allowed` errors; then `after` looks, without faults, whether
    anything is left. No descriptor stays open.
    """
    failed: set[str] = set()
    nth = 1
    while True:
        code = 0
        while True:
            system = System(Fault(nth, code, for_good))
            before = _descriptors()
            raised: Exception | None = None
            try:
                with system.between(modules):
                    act()
            except Exception as error:
                raised = error
            told = "" if raised is None else f"{type(raised).__name__}: {raised}"
            if raised is not None and (system.struck is None or not isinstance(raised, allowed)):
                raise AssertionError(f"{_said(system)}: {told}") from raised
            raised = None  # it holds frames, and so descriptors
            if _descriptors() != before:
                gc.collect()  # it takes as long as a hundred runs
            assert _descriptors() == before, f"{_said(system)}: descriptors are left open ({told})"
            try:
                after(Outcome(None if system.struck is None else system.struck[0], told))
            except AssertionError as error:
                raise AssertionError(f"{_said(system)} ({told}): {error}") from error
            if system.struck is None:
                return failed
            failed.add(system.struck[0])
            if system.last_code():
                break
            code += 1
        nth += 1


def _said(system: System) -> str:
    fault, struck = system._fault, system.struck
    if struck is None:
        return "without a fault"
    name, code = struck
    how = "from then on" if fault.for_good else "once"
    return f"call {fault.nth}, {name}, fails with {errno.errorcode[code]} {how}"


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
