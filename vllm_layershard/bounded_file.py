"""Opens files for the planner: regular ones only, a bounded part of each, without waiting.

A model's directory, a cache and a path on a command line may hold anything: a pipe that nobody
writes to, a device that never ends, a file that grows. No other file of the planner opens one.
What the user names himself may be a pipe too, `<(command)` for example, for a bounded time.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

PIPE_SECONDS: Final = 10.0
"""How long a pipe that the user named may take to end, or to be read."""

_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def json_fault(error: ValueError) -> str:
    """What follows the name of a file that JSON cannot be read from.

    Of a number of thousands of digits Python says how a program reads it; a user cannot.
    """
    known = isinstance(error, json.JSONDecodeError)
    what = str(error) if known else "it holds a number of more digits than are read"
    return f"is not valid JSON: {what}"


class UnreadableError(Exception):
    """A file is not read; the text follows the name of the file: `is a pipe, ...`."""


class AbsentError(UnreadableError):
    """There is no such file."""


class UnwritableError(Exception):
    """A file is not written; the text follows the name of the file."""


class RegularFile:
    """A regular file, open for reading, and its bytes when it was opened."""

    def __init__(self, stream: IO[bytes], nbytes: int) -> None:
        self.stream = stream
        self.nbytes = nbytes

    def read(self, nbytes: int) -> bytes:
        """So many bytes from where it stands, or fewer where it ends.

        Raises:
            UnreadableError: the disk does not give them.
        """
        try:
            return self.stream.read(nbytes)
        except OSError as error:
            raise UnreadableError(f"cannot be read: {_reason(error)}") from None

    def require_unchanged(self) -> None:
        """Refuse what has grown or shrunk since it was opened.

        Raises:
            UnreadableError: it has.
        """
        if os.fstat(self.stream.fileno()).st_size != self.nbytes:
            raise UnreadableError("changed while it was read")


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """The whole of a regular file of at most `limit` bytes.

    Raises:
        AbsentError: there is no such file.
        UnreadableError: it is a pipe, a socket, a device or a directory, is larger, changes
            meanwhile, or may not be read.
    """
    with opened(path) as file:
        raw = file.read(limit + 1)
        _require_at_most(limit, raw)
        file.require_unchanged()
    return raw


def read_named(path: str | os.PathLike[str], limit: int) -> bytes:
    """As `read_bounded`, for a path on the command line, which may be a pipe too.

    `<(command)` of a shell is one. Its writer has `PIPE_SECONDS` to end.

    Raises:
        AbsentError, UnreadableError: as there; and a pipe's writer does not end.
    """
    try:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            return read_bounded(path, limit)
        descriptor = os.open(path, _READ)
        try:
            return _drained(descriptor, limit)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def write_named(path: str | os.PathLike[str], raw: bytes, *, append: bool = False) -> None:
    """Write to what the user named: a file, or a device or pipe that takes it all in time.

    Raises:
        UnwritableError: it does not, or may not be written.
    """
    try:
        descriptor = os.open(path, _WRITE | (os.O_APPEND if append else os.O_TRUNC), 0o666)
        try:
            _fill(descriptor, raw)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENXIO:
            raise UnwritableError("is a pipe that nobody reads, or a socket") from None
        raise UnwritableError(f"cannot be written: {_reason(error)}") from None


def is_absent(path: str | os.PathLike[str]) -> bool:
    """Whether there is no such file, nor one where a link of that name leads."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[RegularFile]:
    """A regular file, open for reading.

    Raises:
        AbsentError: there is no such file.
        UnreadableError: it is none, or may not be read.
    """
    try:
        _require_regular(os.stat(path))  # to open a pipe would already wake who writes to it
        descriptor = os.open(path, _READ)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        _require_regular(status)  # what was looked at may have been replaced
        yield RegularFile(stream, status.st_size)


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UnreadableError(f"is {kind}, not a regular file")


def _require_at_most(limit: int, raw: bytes) -> None:
    if len(raw) > limit:
        raise UnreadableError(f"is larger than {limit:,} bytes")


def _drained(descriptor: int, limit: int) -> bytes:
    """What comes out of a pipe until its writer ends."""
    raw = b""
    for _ in _turns(descriptor, writes=False):
        part = os.read(descriptor, limit + 1 - len(raw))
        raw += part
        _require_at_most(limit, raw)
        if not part:
            return raw
    raise UnreadableError(f"is a pipe whose writer did not end within {PIPE_SECONDS:g} seconds")


def _fill(descriptor: int, raw: bytes) -> None:
    left = memoryview(raw)
    for _ in _turns(descriptor, writes=True):
        left = left[os.write(descriptor, left) :]
        if not left:
            return
    raise UnwritableError(f"did not take what is written within {PIPE_SECONDS:g} seconds")


def _turns(descriptor: int, *, writes: bool) -> Iterator[None]:
    """Each time that a pipe or device may be read or written, as long as its time lasts."""
    import select  # what few commands need

    until = time.monotonic() + PIPE_SECONDS
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT if writes else select.POLLIN)
    while waiting.poll(max(0.0, until - time.monotonic()) * 1000):
        yield


def _unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> UnreadableError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        if os.path.islink(path):
            return UnreadableError("is a link that leads nowhere")
        return AbsentError(f"cannot be read: {error.strerror}")
    return UnreadableError(f"cannot be read: {_reason(error)}")


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
