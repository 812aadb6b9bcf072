"""Shared memory: named pieces of a node's memory that other processes may read.

Note [Who writes]
A piece gets its name only when it is complete. Who has mapped it keeps its pages for as long as it
likes, whatever becomes of the name or of the process that wrote it. Only that process writes into
it, and only in a reload, while no rank reads: see runtime/reload/.

Note [Whose writer is gone]
The writer holds a record lock on each of its pieces. The kernel drops the lock with the process,
however it ends, and forked children do not inherit it; so a piece whose lock can be had is left
over, and `sweep` removes it.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import fcntl
import multiprocessing.util
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_layershard.errors import NodeError

DIRECTORY = Path("/dev/shm")
"""Where the kernel keeps POSIX shared memory, as a file system."""

PREFIX = "layershard-"

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
            self.fd = os.open(DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "see that it is a tmpfs that may be written")
            raise NodeError(
                f"{DIRECTORY}: no memory can be made there for weights that other ranks read "
                f"({error.strerror}); {remedy}, or use transport 'broadcast'"
            ) from None
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            os.posix_fallocate(self.fd, 0, max(1, nbytes))
            os.ftruncate(self.fd, nbytes)
            self.inode = os.fstat(self.fd).st_ino
        except OSError as error:
            close(self.fd)
            raise NodeError(
                f"{DIRECTORY} has {_free_bytes()} bytes free, and {nbytes:,} are needed for "
                "weights that other ranks read; enlarge it (docker run --shm-size), or use "
                f"transport 'broadcast' ({error.strerror})"
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
        draft = path_of(f"{name}.{os.getpid()}-{secrets.token_hex(4)}.draft")
        with _naming(name):
            try:
                _link(self.fd, draft)
                os.replace(draft, path_of(name))
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
                _link(self.fd, path_of(name))
                self._hold(name)
                return None
            holder = holder_of(name)
            if holder is not None:
                return holder
            _remove_if(name, is_left_over)
        raise NodeError(
            f"{path_of(name)}: a rank is to have that name, and what has it cannot be removed; "
            "have it removed"
        )

    def _hold(self, name: str) -> None:
        self._name = name
        _mine[name] = self
        _remove_all_at_exit()

    def unname(self) -> None:
        """Take the name away, if it is still this piece's: who has mapped the piece keeps it."""
        if self._pid != os.getpid():
            return  # a forked child has no say in it
        if self._name is not None and _mine.get(self._name) is self:
            del _mine[self._name]
            _remove_if(self._name, self._has)

    def _has(self, name: str) -> bool:
        """Whether the name is this piece's still, and not that of a newer one."""
        return has(name, self.fd)

    def leave_behind(self) -> None:
        """Let the name outlive this process, until the next start of any removes what is left."""
        assert self._name is not None, "it has none"
        _mine.pop(self._name, None)

    def remove(self) -> None:
        """Take the name away, and let go of the lock."""
        self.unname()
        if self._pid == os.getpid() and self.fd >= 0:
            close(self.fd)
            self.fd = -1


_REMEDIES = {
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

_MOST_CLAIMS = 100
"""How often a name is tried for that seems to be left over, or has just been taken away."""

_FLOCK = struct.Struct("hhqqi4x")
"""The kernel's `struct flock`: kind of lock, whence, start, length, holder."""

_NOT_THERE = (errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENXIO, errno.EAGAIN)
"""None, nothing that this user may read, a link, a socket, a file that its owner has leased."""

_mine: dict[str, Piece] = {}
"""The named pieces of this process. It must not open them anew: closing would drop their lock."""


os.register_at_fork(after_in_child=_mine.clear)

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
    for piece in list(_mine.values()):
        piece.remove()


def _remove_if(name: str, goes: Callable[[str], bool]) -> bool:
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
def _naming(name: str) -> Iterator[None]:
    """Where a name is given: an OSError becomes the error that a user can mend."""
    try:
        yield
    except PermissionError as error:  # everybody may write there, but remove only his own
        raise NodeError(
            f"{path_of(name)} belongs to another user, and weights are to be shared under that "
            f"name; have it removed ({error.strerror})"
        ) from None
    except OSError as error:
        raise NodeError(
            f"{path_of(name)}: weights cannot be shared under that name ({error.strerror}); "
            "remove what is there, and see that the directory may be written"
        ) from None


def _link(fd: int, path: Path) -> None:
    """Give an unnamed file a name; `os.link` (Python 3.11) does not follow /proc's links."""
    source = f"/proc/self/fd/{fd}".encode()
    if _LIBC.linkat(_AT_FDCWD, source, _AT_FDCWD, bytes(path), _AT_SYMLINK_FOLLOW):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Where a piece is looked at: an OSError becomes the error that a user can mend."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "see what the kernel's log says of it")
        raise NodeError(
            f"{path_of(name)}: what another rank shares there cannot be read ({error.strerror}); "
            f"{remedy}"
        ) from None


def read(name: str) -> bytes | None:
    """The content of the piece of that name; None if there is none.

    Raises:
        NodeError: there is one, and it cannot be read.
    """
    if name in _mine:
        return content(name, _mine[name].fd)
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
    assert name not in _mine, f"{name}: this process wrote it"
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


def _free_bytes() -> str:
    try:
        free = os.statvfs(DIRECTORY)
    except OSError:
        return "an unknown number of"
    return f"{free.f_bavail * free.f_frsize:,}"


def holder_of(name: str) -> int | None:
    """The number of the living process that wrote the piece; None if there is none.

    It is 0 of a process in another container (PID namespace).

    Raises:
        NodeError: its lock cannot be asked for.
    """
    if name in _mine:
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
    if name in _mine:
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
    return {name: nbytes for name, nbytes in found if _remove_if(name, is_left_over)}


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
