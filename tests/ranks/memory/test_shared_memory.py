"""Shared memory: what others see and may not do, and what is left when its writer is gone."""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from machine import NEEDS_ROOT, NEEDS_SMAPS
from vllm_layershard.errors import NodeError
from vllm_layershard.runtime import piece as pieces
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.piece import Piece
from vllm_layershard.runtime.shared_memory import PREFIX
from vllm_layershard.runtime.window import Window

FORK = multiprocessing.get_context("fork")
HANG_S = 60


def elsewhere(work: Any, *args: Any) -> Any:
    """What `work` returns in a forked process; its exit code if it does not come to that."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=lambda: theirs.send(work(*args)))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        return process.exitcode


@pytest.fixture
def name():
    name = f"{PREFIX}test-{os.getpid()}"
    yield name
    assert not shared_memory.path_of(name).exists()


def seen(name: str) -> list[int]:
    fd = shared_memory.open_to_read(name)
    window = Window(8)
    window.show(fd, writable=False)
    os.close(fd)
    return window.part(0, 8).tolist()


def test_a_piece_is_seen_elsewhere_until_it_is_removed(name):
    piece = Piece.of(name, bytes(range(8)))
    assert elsewhere(seen, name) == list(range(8))
    assert shared_memory.read(name) == bytes(range(8))
    piece.remove()
    assert shared_memory.read(name) is None
    assert elsewhere(shared_memory.open_to_read, name) is None


def written(name: str) -> None:
    faulthandler.disable()  # it would tell at length what is expected here
    window = Window(8)
    window.show(shared_memory.open_to_read(name), writable=False)
    window.part(0, 8).fill_(1)


def test_who_writes_what_another_rank_keeps_is_ended(name):
    piece = Piece.of(name, bytes(8))
    assert elsewhere(written, name) == -signal.SIGSEGV
    assert shared_memory.read(name) == bytes(8)
    piece.remove()


def test_an_address_stays_when_another_piece_is_shown():
    first, second, window = Piece(5000), Piece(5000), Window(5000)
    window.show(first.fd, writable=True)
    part = window.part(64, 4000)
    address = part.data_ptr()
    part.fill_(1)
    window.show(second.fd, writable=True)
    assert part.sum() == 0
    part.fill_(2)
    window.show(first.fd, writable=True)
    del window
    assert (part.sum(), part.data_ptr()) == (4000, address)
    assert part.untyped_storage().nbytes() == 4000


LEFT = """
import os, sys
from vllm_layershard.runtime.piece import Piece
Piece.of(sys.argv[1], b"weights")
print("ready", flush=True)
os.read(0, 1)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_what_a_dead_process_left_is_swept_and_a_living_ones_is_not(name, end):
    other = subprocess.Popen(
        [sys.executable, "-c", LEFT, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "ready\n"
    assert not shared_memory.is_left_over(name)
    assert name not in shared_memory.sweep()
    assert shared_memory.read(name) == b"weights"
    if end is not None:
        other.send_signal(end)
    other.communicate("x" if end is None else None)
    if end is None:
        assert shared_memory.read(name) is None, "an orderly end leaves nothing"
    else:
        assert shared_memory.is_left_over(name)
        assert name in shared_memory.sweep()


def test_who_ends_leaves_the_name_that_its_successor_has_taken(name):
    """A rank that is started again takes its names over before its predecessor has ended."""
    former = Piece.of(name, b"former")
    successor = subprocess.Popen(
        [sys.executable, "-c", LEFT, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert successor.stdout.readline() == "ready\n"
    former.remove()
    assert shared_memory.read(name) == b"weights"
    assert shared_memory.names(name.removeprefix(PREFIX)) == [name]
    successor.communicate("x")


def test_a_name_that_is_taken_over_while_it_is_taken_away_stays(name, monkeypatch):
    former = Piece.of(name, b"former")
    rename, newer = os.rename, Piece(8)

    def taken_over_just_before(source, target):
        monkeypatch.setattr(os, "rename", rename)
        os.unlink(source)
        pieces._link(newer.fd, source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", taken_over_just_before)
    former.remove()
    path = shared_memory.path_of(name)
    assert os.path.samestat(path.stat(), os.fstat(newer.fd))
    assert shared_memory.names(name.removeprefix(PREFIX)) == [name]
    path.unlink()
    newer.remove()


def test_a_sweep_puts_back_no_name_that_was_given_anew(name, monkeypatch):
    """What it set aside turned out to live, and meanwhile a newer piece has taken the name."""
    living, newest = Piece(8), Piece(8)
    path = shared_memory.path_of(name)
    pieces._link(living.fd, path)
    rename = os.rename

    def named_anew_just_after(source, target):
        rename(source, target)
        pieces._link(newest.fd, source)

    def seems_left_over_at_first(asked):
        return asked == name

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", named_anew_just_after)
        patch.setattr(shared_memory, "is_left_over", seems_left_over_at_first)
        assert name not in shared_memory.sweep()
    assert os.path.samestat(path.stat(), os.fstat(newest.fd))
    assert shared_memory.names(name.removeprefix(PREFIX)) == [name]
    path.unlink()
    living.remove()
    newest.remove()


def in_a_forked_child(name: str) -> list[bool]:
    pieces._remove_all()
    return [shared_memory.is_left_over(name), name in shared_memory.sweep()]


def test_a_forked_child_neither_owns_nor_removes_its_parents(name):
    piece = Piece.of(name, b"weights")
    assert elsewhere(in_a_forked_child, name) == [False, False]
    assert shared_memory.read(name) == b"weights"
    piece.remove()


def with_its_grandparents_number(name: str, number: int) -> None:
    """As the code under test sees it; multiprocessing's own exit goes by the real one."""
    real, ours = os.getpid, pieces.__name__
    os.getpid = lambda: number if sys._getframe(1).f_globals["__name__"] == ours else real()
    Piece.of(f"{name}-grandchild", b"weights")


def test_who_has_the_number_of_a_forebear_takes_its_own_names_away_at_its_end(name):
    """Numbers come again, and what this process was told is not told to its children."""
    piece = Piece.of(name, b"weights")
    child = FORK.Process(target=with_its_grandparents_number, args=(name, os.getpid()))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert shared_memory.names(name.removeprefix(PREFIX)) == [name]
    piece.remove()


def test_too_little_shared_memory_is_named_with_the_remedy():
    with pytest.raises(NodeError, match=r"/dev/shm has [\d,]+ bytes free, and 2,305,8.*--shm-size"):
        Piece(1 << 61)


@pytest.mark.parametrize("junk", ["directory", "pipe", pytest.param("foreign", marks=NEEDS_ROOT)])
def test_a_name_that_no_piece_has_and_nobody_can_remove_is_not_claimed(name, junk):
    path = shared_memory.path_of(name)
    if junk == "directory":
        path.mkdir()
    elif junk == "pipe":
        os.mkfifo(path)
    else:
        elsewhere(as_nobody, str(path))
    with pytest.raises(NodeError, match=f"{name}: a rank is to have that name"):
        Piece(8).claim(name)
    assert os.path.lexists(path)
    path.rmdir() if junk == "directory" else path.unlink()


def test_a_name_is_claimed_from_the_dead_and_never_from_the_living(name):
    first, second = Piece(8), Piece(8)
    assert first.claim(name) is None
    assert second.claim(name) == os.getpid()
    assert elsewhere(shared_memory.holder_of, name) == os.getpid()
    assert elsewhere(lambda: Piece(8).claim(name)) == os.getpid()
    first.remove()
    assert elsewhere(left, name) == -signal.SIGKILL
    assert shared_memory.holder_of(name) is None
    assert second.claim(name) is None
    assert shared_memory.holder_of(name) == os.getpid()
    second.remove()


def left(name: str) -> None:
    Piece.of(name, b"weights")
    os.kill(os.getpid(), signal.SIGKILL)


def as_nobody(path: str) -> None:
    os.setresuid(65534, 65534, 65534)
    with open(path, "wb") as file:
        file.write(b"forged")


@NEEDS_ROOT
def test_what_another_user_has_put_there_is_not_taken_for_a_piece(name):
    path = shared_memory.path_of(name)
    assert elsewhere(as_nobody, str(path)) is None
    assert shared_memory.read(name) is None
    assert name not in shared_memory.sweep()
    assert path.read_bytes() == b"forged"
    path.unlink()


MANY = 2_000


def many_foreign(prefix: str) -> None:
    os.setresuid(65534, 65534, 65534)
    for number in range(MANY):
        os.close(os.open(shared_memory.path_of(f"{prefix}-{number}"), os.O_CREAT, 0o666))


@NEEDS_ROOT
def test_a_sweep_opens_no_file_of_another_user(name, monkeypatch):
    """Fifty thousand of them made a start take seconds, when each was opened."""
    assert elsewhere(many_foreign, name) is None
    foreign = list(shared_memory.DIRECTORY.glob(f"{name}-*"))
    assert len(foreign) == MANY
    assert elsewhere(left, name) == -signal.SIGKILL
    opened, open_file = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *a: opened.append(path) or open_file(path, *a))
    try:
        assert shared_memory.sweep()[name] == len(b"weights")
        assert shared_memory.names(name.removeprefix(PREFIX)) == []
    finally:
        for path in foreign:
            path.unlink()
    assert not set(opened) & set(foreign)


def test_a_directory_that_cannot_be_listed_is_named_and_one_that_is_not_there_is_empty(monkeypatch):
    monkeypatch.setattr(shared_memory, "DIRECTORY", Path("/dev/null"))
    with pytest.raises(NodeError, match=r"/dev/null: .* cannot be listed .*; let this user"):
        shared_memory.sweep()
    monkeypatch.setattr(shared_memory, "DIRECTORY", Path("/nowhere"))
    assert shared_memory.sweep() == {}


def test_what_would_block_who_opens_it_is_passed_by(name):
    os.mkfifo(shared_memory.path_of(name))
    assert shared_memory.read(name) is None
    assert name not in shared_memory.sweep()
    shared_memory.path_of(name).unlink()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOENT, "mount a tmpfs there"),
        (errno.EROFS, "may be written"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EOPNOTSUPP, "mount a tmpfs there"),
        (errno.EIO, "see that it is a tmpfs"),
    ],
)
def test_a_directory_that_gives_no_memory_is_named_with_the_remedy(monkeypatch, code, remedy):
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NodeError, match=f"/dev/shm: no memory can be made there.*{remedy}"):
        Piece(8)


@pytest.mark.parametrize("call", ["lockf", "posix_fallocate", "ftruncate"])
def test_a_call_that_fails_is_named_and_leaves_no_descriptor(monkeypatch, call):
    def refuse(*_: object) -> None:
        raise OSError(errno.EINTR, "interrupted")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(shared_memory.fcntl if call == "lockf" else os, call, refuse)
    with pytest.raises(NodeError, match=r"interrupted"):
        Piece(8)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_under_the_name_is_told_and_leaves_no_draft(name):
    path = shared_memory.path_of(name)
    path.mkdir()
    with pytest.raises(NodeError, match=f"{name}: weights cannot be shared under that name"):
        Piece.of(name, b"weights")
    path.rmdir()
    assert not shared_memory.names(name.removeprefix(PREFIX))


def test_a_draft_that_somebody_has_planted_is_in_nobodys_way(name):
    planted = shared_memory.path_of(f"{name}.{os.getpid()}.draft")
    planted.write_bytes(b"planted")
    piece = Piece.of(name, b"weights")
    assert shared_memory.read(name) == b"weights"
    piece.remove()
    assert planted.read_bytes() == b"planted"
    planted.unlink()


def leased(name: str, ready: Any, end: Any) -> None:
    """As any local user can do to a file of his own: whoever opens it must wait, or give up."""
    path = shared_memory.path_of(name)
    path.write_bytes(b"forged")
    fd = os.open(path, os.O_RDONLY)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    ready.set()
    end.wait(HANG_S)
    path.unlink()


def test_a_file_that_its_owner_has_leased_is_passed_by(name):
    ready, end = FORK.Event(), FORK.Event()
    process = FORK.Process(target=leased, args=(name, ready, end))
    process.start()
    assert ready.wait(HANG_S)
    assert shared_memory.read(name) is None
    assert name not in shared_memory.sweep()
    end.set()
    process.join()


def test_a_name_that_cannot_be_taken_is_told_and_leaves_no_draft(name, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(NodeError, match=f"{name} belongs to another user.*have it removed"):
        Piece.of(name, b"weights")
    assert not shared_memory.names(name.removeprefix(PREFIX))


def flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that begins at this address: `dd` keeps it from dumps."""
    entries = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any(line.startswith(f"{address:x}-") for line in entries)
    return next(line for line in entries if line.startswith("VmFlags:")).split()[1:]


@NEEDS_SMAPS
@pytest.mark.parametrize("writable", [True, False])
def test_a_core_file_leaves_the_weights_out(writable):
    window, piece = Window(1 << 20), Piece(1 << 20)
    window.show(piece.fd, writable=writable)
    assert "dd" in flags_at(window.part(0, 1).data_ptr())
    piece.remove()
