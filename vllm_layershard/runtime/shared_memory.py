"""Shared memory: the named pieces of a node, found, read and swept. A piece is made in piece.py.

Note [Whose writer is gone]
The writer holds a record lock on each of its pieces. The kernel drops the lock with the process,
however it ends, and forked children do not inherit it; so a piece whose lock can be had is left
over, and `sweep` removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from vllm_layershard.errors import NodeError

DIRECTORY = Path("/dev/shm")
"""Where the kernel keeps POSIX shared memory, as a file system."""

PREFIX = "layershard-"


class Own(Protocol):
    """A piece that this process has written: see piece.py."""

    fd: int

    def remove(self) -> None:
        """Take the name away, and let go of the lock."""


REMEDIES = {
    errno.ENOENT: "mount a tmpfs there",
    errno.EROFS: "mount it so that it may be written",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the node's limit of open files (fs.file-max)",
    errno.EOPNOTSUPP: "mount a tmpfs there",
    errno.ENOMEM: "raise the limits of mappings (vm.max_map_count) and of memory (ulimit -v)",
}
"""Against what may keep a piece from being made or seen."""

_FLOCK = struct.Struct("hhqqi4x")
"""The kernel's `struct flock`: kind of lock, whence, start, length, holder."""

_NOT_THERE = (errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENXIO, errno.EAGAIN)
"""None, nothing that this user may read, a link, a socket, a file that its owner has leased."""

mine: dict[str, Own] = {}
"""The named pieces of this process. It must not open them anew: closing would drop their lock."""

os.register_at_fork(after_in_child=mine.clear)


def remove_if(name: str, goes: Callable[[str], bool]) -> bool:
    """Remove what has the name if it `goes`; whether it did. Something else keeps the name.

    A rank that is started again takes its predecessor's names over, maybe between two calls of this
    one. So what is to go is set aside and looked at once more, and put back only where the name
    was not given anew meanwhile.
    """
    path, aside = path_of(name), f"{name}.{os.getpid()}-{secrets.token_hex(4)}.swept"
    with suppress(OSError, NodeError):  # gone already, or another user's, or not to be looked at
        if not goes(name):
            return False
        os.rename(path, path_of(aside))
        gone = False
        try:
            gone = goes(aside)
        finally:
            if not gone:
                with suppress(FileExistsError):
                    os.link(path_of(aside), path, follow_symlinks=False)
            os.unlink(path_of(aside))
        return gone
    return False


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Where a piece is looked at: an OSError becomes the error that a user can mend."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "see what the kernel's log says of it")
        raise NodeError(
            f"{path_of(name)}: what another rank shares there cannot be read ({error.strerror}); "
            f"{remedy}"
        ) from None


def read(name: str) -> bytes | None:
    """The content of the piece of that name; None if there is none.

    Raises:
        NodeError: there is one, and it cannot be read.
    """
    if name in mine:
        return content(name, mine[name].fd)
    fd = open_to_read(name)
    if fd is None:
        return None
    try:
        return content(name, fd)
    finally:
        close(fd)


def content(name: str, fd: int) -> bytes:
    """What is in an open piece; `name` is for the message.

    Raises:
        NodeError: it cannot be read.
    """
    with reading(name):
        return os.pread(fd, os.fstat(fd).st_size, 0)


def open_to_read(name: str) -> int | None:
    """A file descriptor of another process's piece, to be closed; None if there is none.

    The directory is everybody's: what another user has put there is as good as not there.

    Raises:
        NodeError: there is one, and it cannot be opened.
    """
    assert name not in mine, f"{name}: this process wrote it"
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with reading(name):
        try:
            fd = os.open(path_of(name), flags)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise
        try:
            found = os.fstat(fd)
        except OSError:
            close(fd)
            raise
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
        return fd
    close(fd)
    return None


def close(fd: int) -> None:
    """Whatever it says, Linux lets go of the descriptor."""
    with suppress(OSError):
        os.close(fd)


def holder_of(name: str) -> int | None:
    """The number of the living process that wrote the piece; None if there is none.

    It is 0 of a process in another container (PID namespace).

    Raises:
        NodeError: its lock cannot be asked for.
    """
    if name in mine:
        return os.getpid()
    fd = open_to_read(name)
    if fd is None:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        with reading(name):
            kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        close(fd)
    return None if kind == fcntl.F_UNLCK else int(pid)


def has(name: str, fd: int) -> bool:
    """Whether the name is, now, that of an open piece.

    Raises:
        NodeError: it cannot be told.
    """
    with reading(name):
        try:
            return os.path.samestat(os.lstat(path_of(name)), os.fstat(fd))
        except FileNotFoundError:
            return False


def is_left_over(name: str) -> bool:
    """Whether the process that wrote the piece is gone; False if there is no such piece."""
    if name in mine:
        return False
    fd = open_to_read(name)
    if fd is None:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        close(fd)
    return True


def names(prefix: str = "") -> list[str]:
    """The names of this user's pieces on this node that begin so.

    Raises:
        NodeError: the directory cannot be listed.
    """
    return sorted(_sizes(prefix))


def sweep() -> dict[str, int]:
    """Remove what dead processes of this user have left on this node; its names, with their bytes.

    Raises:
        NodeError: the directory cannot be listed.
    """
    found = sorted(_sizes().items())
    return {name: nbytes for name, nbytes in found if remove_if(name, is_left_over)}


def _sizes(prefix: str = "") -> dict[str, int]:
    """This user's pieces, with their bytes; another user's are not even opened."""
    found = {}
    try:
        with os.scandir(DIRECTORY) as entries:
            for entry in entries:
                if entry.name.startswith(f"{PREFIX}{prefix}"):
                    with suppress(FileNotFoundError):  # taken away meanwhile
                        status = entry.stat(follow_symlinks=False)
                        if status.st_uid == os.geteuid():
                            found[entry.name] = status.st_size
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise NodeError(
            f"{DIRECTORY}: what dead processes have left there cannot be listed "
            f"({error.strerror}); let this user read it"
        ) from None
    return found


def path_of(name: str) -> Path:
    """Where a piece of that name is found."""
    assert name.startswith(PREFIX), name
    assert "/" not in name, name
    return DIRECTORY / name
