"""Every system call of the shared memory fails, once and for good: a named error, or all is well.

Afterwards no descriptor is open, and no name is left that a sweep without faults does not remove.
In one process, through the seam of failing.py; what other processes share is really theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from elsewhere import Clock, Elsewhere
from failing import Outcome, each_fault
from vllm_layershard.errors import MismatchError, NodeError, TransportError
from vllm_layershard.runtime import piece as pieces
from vllm_layershard.runtime import shared_memory, window
from vllm_layershard.runtime.peer_memory import posix
from vllm_layershard.runtime.peer_memory.posix import PosixExports
from vllm_layershard.runtime.piece import Piece
from vllm_layershard.runtime.ranks import rendezvous
from vllm_layershard.runtime.ranks.rendezvous import Rendezvous
from vllm_layershard.runtime.shared_memory import PREFIX

MODULES = (pieces, shared_memory, rendezvous, posix, window)
REMOVAL = {"unlink", "rename", "link", "lstat", "fstat"}
"""Where one of these fails a name may stay until the next sweep."""

both = pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])


@pytest.fixture
def name(monkeypatch) -> Iterator[str]:
    """In a directory of the test's own: what others make and sweep would change the calls."""
    with TemporaryDirectory(prefix="failing-", dir=shared_memory.DIRECTORY) as directory:
        monkeypatch.setattr(shared_memory, "DIRECTORY", Path(directory))
        yield f"{PREFIX}failing-{os.getpid()}"


def left() -> list[str]:
    return shared_memory.names(f"failing-{os.getpid()}")


def nothing_is_left(outcome: Outcome) -> None:
    if outcome.failed not in REMOVAL:
        assert not left(), "names are left"
    shared_memory.sweep()
    assert not left(), "names are left after a sweep"
    assert not outcome.told.endswith(": "), "the error says nothing"


@pytest.fixture
def hours(monkeypatch) -> None:
    monkeypatch.setattr(rendezvous, "time", Clock())


@both
def test_a_piece_is_made_named_read_and_removed(name, for_good):
    def act() -> None:
        piece = Piece.of(name, b"weights")
        try:
            assert shared_memory.read(name) == b"weights"
            assert shared_memory.holder_of(name) == os.getpid()
            assert not shared_memory.is_left_over(name)
        finally:
            piece.remove()

    failed = each_fault(MODULES, act, (NodeError,), nothing_is_left, for_good=for_good)
    assert failed >= {"open", "lockf", "posix_fallocate", "ftruncate", "fstat", "pwrite", "linkat",
                      "replace", "unlink", "lstat", "rename", "pread", "close"}  # fmt: skip


@contextmanager
def removing(*pieces: Piece) -> Iterator[None]:
    try:
        yield
    finally:
        for piece in pieces:
            piece.remove()


def leave_over(name: str) -> None:
    """As a dead process leaves it: there, and locked by nobody."""
    shared_memory.path_of(name).write_bytes(b"of the dead")


@both
def test_a_name_is_claimed_of_the_dead(name, for_good):
    def act() -> None:
        piece = Piece(8)
        with removing(piece):
            assert piece.claim(name) is None

    def after(outcome: Outcome) -> None:
        nothing_is_left(outcome._replace(failed="unlink"))  # of the dead something may be
        leave_over(name)

    leave_over(name)
    failed = each_fault(MODULES, act, (NodeError,), after, for_good=for_good)
    assert failed >= {"linkat", "fcntl", "open", "fstat", "lockf", "rename", "unlink", "close"}


@both
def test_what_another_process_shares_is_read_and_stays(name, for_good):
    found = []

    def act() -> None:
        found.clear()
        found.append(shared_memory.read(name))
        found.append(shared_memory.holder_of(name) is not None)
        found.append(shared_memory.is_left_over(name))
        found.append(name in shared_memory.names())
        found.append(name in shared_memory.sweep())

    def after(outcome: Outcome) -> None:
        assert left() == [name], "the living one's name stays"
        assert True not in found[2:3], "it lives"
        assert found[4:] in ([], [False])
        if outcome.failed is None:
            assert found == [b"weights", True, False, True, False]

    with Elsewhere(lambda: Piece.of(name, b"weights")):
        failed = each_fault(MODULES, act, (NodeError,), after, for_good=for_good)
    assert failed >= {"open", "fstat", "pread", "fcntl", "lockf", "scandir", "lstat", "close"}


@both
def test_what_the_dead_left_is_swept_at_last(name, for_good):
    def act() -> None:
        shared_memory.sweep()

    def after(outcome: Outcome) -> None:
        shared_memory.sweep()
        assert not left()
        leave_over(name)

    leave_over(name)
    failed = each_fault(MODULES, act, (NodeError,), after, for_good=for_good)
    assert failed >= {"scandir", "lstat", "open", "fstat", "lockf", "close", "rename", "unlink"}


def close_what_is_left_behind(name: str) -> None:
    """What a rank leaves behind is to outlive its process, so it has it open until it ends."""
    path = shared_memory.path_of(name)
    if path.exists():
        left_behind = path.stat()
        for fd in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):  # the listing's own is gone
                if os.path.samestat(os.fstat(fd), left_behind):
                    os.close(fd)


@both
def test_documents_are_shown_read_and_taken_away(name, for_good, hours):
    meeting = name.removeprefix(PREFIX)
    found = []

    def other() -> Rendezvous:
        one = Rendezvous(meeting, 1)
        one.publish("plan", {"of": 1})
        one.publish("plan", {"of": "one"})
        return one

    def act() -> None:
        found.clear()
        mine = Rendezvous(meeting, 0)
        try:
            mine.publish("plan", {"of": 0})
            mine.publish("plan", {"of": "zero"})
            found.append(mine.read("plan", (0, 1)))
            found.append(mine.look("plan", 1))
            mine.leave(ValueError("the end"))
        finally:
            mine.close()
            close_what_is_left_behind(f"{name}-end-0")

    def after(outcome: Outcome) -> None:
        of_mine = [one for one in left() if one.endswith("-0") or "-0." in one]
        if outcome.failed not in REMOVAL:
            assert of_mine in ([], [f"{name}-end-0"]), of_mine
        shared_memory.sweep()
        assert not [one for one in left() if one.endswith("-0")]
        if not outcome.told:
            assert found == [[{"of": "zero"}, {"of": "one"}], {"of": "one"}] or outcome.failed

    allowed = (NodeError, TransportError, MismatchError)
    with Elsewhere(other):
        each_fault(MODULES, act, allowed, after, for_good=for_good)
    shared_memory.sweep()


@both
def test_weights_are_stored_handed_over_and_seen(name, for_good):
    series = name.removeprefix(PREFIX)
    weight = torch.arange(6.0)

    def act() -> None:
        mine, peer = PosixExports(series, 0), PosixExports(series, 1)
        try:
            (stored,) = mine.store(3, [weight])
            assert torch.equal(stored, weight)
            handles = mine.handles()
            # Of this process's own pieces the peer must not open any: it would drop their locks.
            names = dict(shared_memory.mine)
            shared_memory.mine.clear()
            try:
                (seen,) = peer.open(0, handles, {3: (24,)})[3]
            finally:
                shared_memory.mine.update(names)
            assert torch.equal(seen.view(torch.float), weight)
            mine.settle()
        finally:
            mine._end()
            peer._end()

    failed = each_fault(
        MODULES, act, (NodeError, TransportError), nothing_is_left, for_good=for_good
    )
    assert failed >= {"mmap", "open", "linkat", "fstat", "stat", "close"}
