"""ReportFile: the file of one rank's report: written whole or not at all, by one server at a time.

Note [Whose report]
The writer holds a record lock on the file that it wrote last, and on each draft. The kernel drops a
lock with its process, however that ends, and forked children do not inherit it. So a file whose
lock can be had is a dead server's and is replaced, and such a draft is removed. Where a file system
has no locks, nobody is told.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vllm_layershard.errors import ConfigError

_MOST_READ = 65536
"""Bytes of another server's report that are read to name its process."""

_TRIAL = "layershard-trial"
"""The stem of what only tries whether the directory can be written."""


class ReportFile:
    """`layershard-rank{rank}.json` in this directory."""

    def __init__(self, directory: str, rank: int) -> None:
        self.rank = rank
        self._directory = directory
        self._stem = f"layershard-rank{rank}"
        self._path = f"{directory}/{self._stem}.json"
        self._one_at_a_time = threading.Lock()
        self._held: list[int] = []
        """The descriptor of the file as written last, and with it the lock; none before."""
        weakref.finalize(self, _close_all, self._held)

    def prepare(self) -> None:
        """See that no other server writes this file; remove what dead ones left half-written.

        Raises:
            ConfigError: one does, or the directory cannot be made or written.
        """
        make_writable(self._directory)
        drafts = re.compile(rf"({self._stem}|{_TRIAL})\.\d+-[0-9a-f]+\.tmp")
        with _writing(self._directory):
            self._refuse_another()
            for name in filter(drafts.fullmatch, os.listdir(self._directory)):
                path = f"{self._directory}/{name}"
                if not _is_held(path):
                    _remove(path)

    def write(self, text: str) -> None:
        """Write the file anew; makes the directory if it is not there.

        Raises:
            ConfigError: another server writes it, or it cannot be written.
        """
        with self._one_at_a_time, _writing(self._directory):
            os.makedirs(self._directory, exist_ok=True)
            self._refuse_another()
            fd, draft = _open_draft(self._directory, self._stem)
            try:
                _write_all(fd, text.encode())
                os.replace(draft, self._path)
            except BaseException:
                _close(fd)
                raise
            finally:
                _remove(draft)  # nothing has that name if all went well
            _close_all(self._held)
            self._held.append(fd)

    def _refuse_another(self) -> None:
        if self._held and self._is_as_written():
            return  # and must not be opened anew: closing would drop the lock
        if _is_held(self._path):
            raise ConfigError(
                f"layer_sharding.report_dir = {self._directory!r}: the report of rank {self.rank} "
                f"is written there by another server, which runs ({_writer_of(self._path)}); give "
                "each server a directory of its own"
            )

    def _is_as_written(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._held[-1]))
        except FileNotFoundError:
            return False


def make_writable(directory: str) -> None:
    """Make the directory if it is not there, and see that a file can be written in it.

    Raises:
        ConfigError: it cannot.
    """
    with _writing(directory):
        os.makedirs(directory, exist_ok=True)
        fd, draft = _open_draft(directory, _TRIAL)
        _remove(draft)
        _close(fd)


@contextmanager
def _writing(directory: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError: no file can have such a name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"layer_sharding.report_dir = {directory!r}: cannot be written "
            f"({reason}); give a directory that every rank may write to"
        ) from None


def _open_draft(directory: str, stem: str) -> tuple[int, str]:
    """A new file under a name that nobody can guess, locked; its descriptor and its path."""
    draft = f"{directory}/{stem}.{os.getpid()}-{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o666)
    with suppress(OSError):  # without locks: see the note
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd, draft


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _open_to_look(path: str) -> int | None:
    """A descriptor of what is there; None if it is nothing, a link, or not to be read."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except OSError:
        return None


def _is_held(path: str) -> bool:
    """Whether a living process has written this file: see the note."""
    fd = _open_to_look(path)
    if fd is None:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    finally:
        _close(fd)
    return False


def _writer_of(path: str) -> str:
    """The process that wrote a report, in words, as the document says."""
    fd = _open_to_look(path)
    if fd is None:
        return "it has ended meanwhile"
    try:
        process = json.loads(os.read(fd, _MOST_READ))["process"]
        return f"process {int(process['pid'])} on {process['hostname']!r}"
    except (OSError, ValueError, TypeError, LookupError):
        return "its process is not known"
    finally:
        _close(fd)


def _remove(path: str) -> None:
    with suppress(OSError):  # gone already, or another user's
        os.unlink(path)


def _close_all(fds: list[int]) -> None:
    while fds:
        _close(fds.pop())


def _close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)
