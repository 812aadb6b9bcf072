"""Piece: shared memory that this process has written, with a name by which others find it.

Note [Who writes]
A piece gets its name only when it is complete. Who has mapped it keeps its pages for as long as it
likes, whatever becomes of the name or of the process that wrote it. Only that process writes into
it, and only in a reload, while no rank reads: see runtime/reload/.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import multiprocessing.util
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_layershard.errors import NodeError
from vllm_layershard.runtime import shared_memory

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_AT_SYMLINK_FOLLOW = 0x400


class Piece:
    """A piece that this process has written: it lives until `remove`, or until the process ends."""

    def __init__(self, nbytes: int) -> None:
        """An unnamed piece of `nbytes`, all zero, of which every page is really there.

        Raises:
            NodeError: the node has not so much shared memory left, or none at all.
        """
        self.nbytes = nbytes
        self._name: str | None = None
        self._pid = os.getpid()
        try:
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            self.fd = os.open(shared_memory.DIRECTORY, flags, 0o600)
        except OSError as error:
            usual = "see that it is a tmpfs that may be written"
            remedy = shared_memory.REMEDIES.get(error.errno or 0, usual)
            raise NodeError(
                f"{shared_memory.DIRECTORY}: no memory can be made there for weights that other "
                f"ranks read ({error.strerror}); {remedy}, or use transport 'broadcast'"
            ) from None
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            os.posix_fallocate(self.fd, 0, max(1, nbytes))
            os.ftruncate(self.fd, nbytes)
            self.inode = os.fstat(self.fd).st_ino
        except OSError as error:
            shared_memory.close(self.fd)
            raise NodeError(
                f"{shared_memory.DIRECTORY} has {_free_bytes()} bytes free, and {nbytes:,} are "
                "needed for weights that other ranks read; enlarge it (docker run --shm-size), or "
                f"use transport 'broadcast' ({error.strerror})"
            ) from None

    @classmethod
    def of(cls, name: str, data: bytes) -> Piece:
        """A piece with this content under this name, in the place of a former one.

        Raises:
            NodeError: there is no memory for it, or the name cannot be had.
        """
        piece = cls(len(data))
        try:
            with _naming(name):
                os.pwrite(piece.fd, data, 0)
            piece.name(name)
        except BaseException:
            piece.remove()
            raise
        return piece

    def name(self, name: str) -> None:
        """Let others find it, complete as it is; a former piece of the name loses it.

        Raises:
            NodeError: something else has the name, or the directory takes none.
        """
        assert self._name is None, f"{name}: it is {self._name} already"
        draft = shared_memory.path_of(f"{name}.{os.getpid()}-{secrets.token_hex(4)}.draft")
        with _naming(name):
            try:
                _link(self.fd, draft)
                os.replace(draft, shared_memory.path_of(name))
            finally:
                with suppress(OSError):  # it is not there if all went well
                    os.unlink(draft)
        self._hold(name)

    def claim(self, name: str) -> int | None:
        """As `name`, but whoever lives keeps the name: the number of the process that has it.

        It is 0 of a process in another container (PID namespace).

        Raises:
            NodeError: as `name`.
        """
        assert self._name is None, f"{name}: it is {self._name} already"
        for _ in range(_MOST_CLAIMS):
            with _naming(name), suppress(FileExistsError):
                _link(self.fd, shared_memory.path_of(name))
                self._hold(name)
                return None
            holder = shared_memory.holder_of(name)
            if holder is not None:
                return holder
            shared_memory.remove_if(name, shared_memory.is_left_over)
        raise NodeError(
            f"{shared_memory.path_of(name)}: a rank is to have that name, and what has it cannot "
            "be removed; have it removed"
        )

    def _hold(self, name: str) -> None:
        self._name = name
        shared_memory.mine[name] = self
        _remove_all_at_exit()

    def unname(self) -> None:
        """Take the name away, if it is still this piece's: who has mapped the piece keeps it."""
        if self._pid != os.getpid():
            return  # a forked child has no say in it
        if self._name is not None and shared_memory.mine.get(self._name) is self:
            del shared_memory.mine[self._name]
            shared_memory.remove_if(self._name, self._has)

    def _has(self, name: str) -> bool:
        """Whether the name is this piece's still, and not that of a newer one."""
        return shared_memory.has(name, self.fd)

    def leave_behind(self) -> None:
        """Let the name outlive this process, until the next start of any removes what is left."""
        assert self._name is not None, "it has none"
        shared_memory.mine.pop(self._name, None)

    def remove(self) -> None:
        """Take the name away, and let go of the lock."""
        self.unname()
        if self._pid == os.getpid() and self.fd >= 0:
            shared_memory.close(self.fd)
            self.fd = -1


_MOST_CLAIMS = 100
"""How often a name is tried for that seems to be left over, or has just been taken away."""

_leaving: set[int] = set()
"""The process that has been told what to do at its end."""

os.register_at_fork(after_in_child=_leaving.clear)  # a number comes again: a grandchild may have it


def _remove_all_at_exit() -> None:
    """Once in a process: at its end, also where it is one of multiprocessing's forked ones."""
    if os.getpid() not in _leaving:
        _leaving.add(os.getpid())
        atexit.register(_remove_all)
        multiprocessing.util.Finalize(None, _remove_all, exitpriority=0)


def _remove_all() -> None:
    for piece in list(shared_memory.mine.values()):
        piece.remove()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Where a name is given: an OSError becomes the error that a user can mend."""
    try:
        yield
    except PermissionError as error:  # everybody may write there, but remove only his own
        raise NodeError(
            f"{shared_memory.path_of(name)} belongs to another user, and weights are to be shared "
            f"under that name; have it removed ({error.strerror})"
        ) from None
    except OSError as error:
        raise NodeError(
            f"{shared_memory.path_of(name)}: weights cannot be shared under that name "
            f"({error.strerror}); remove what is there, and see that the directory may be written"
        ) from None


def _link(fd: int, path: Path) -> None:
    """Give an unnamed file a name; `os.link` (Python 3.11) does not follow /proc's links."""
    source = f"/proc/self/fd/{fd}".encode()
    if _LIBC.linkat(_AT_FDCWD, source, _AT_FDCWD, bytes(path), _AT_SYMLINK_FOLLOW):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def _free_bytes() -> str:
    try:
        free = os.statvfs(shared_memory.DIRECTORY)
    except OSError:
        return "an unknown number of"
    return f"{free.f_bavail * free.f_frsize:,}"
