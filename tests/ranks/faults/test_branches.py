"""What only another process, or another user, makes happen: shown in this one, branch by branch.

The same is shown between real processes in tests/ranks/; here so that no branch goes untried.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from elsewhere import Clock, Elsewhere
from vllm_layershard.errors import ConfigError, MismatchError, NodeError, TransportError
from vllm_layershard.runtime import piece as pieces
from vllm_layershard.runtime import report, shared_memory
from vllm_layershard.runtime.peer_memory import posix
from vllm_layershard.runtime.peer_memory.posix import PosixExports
from vllm_layershard.runtime.piece import Piece
from vllm_layershard.runtime.ranks import rendezvous
from vllm_layershard.runtime.ranks.rendezvous import Rendezvous
from vllm_layershard.runtime.report import Report
from vllm_layershard.runtime.shared_memory import PREFIX

NAME = f"{PREFIX}branches"
SIZES = {3: (24,)}


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> Iterator[None]:
    """In a directory of the test's own, where every wait is over at once."""
    monkeypatch.setattr(rendezvous, "time", Clock())
    with TemporaryDirectory(prefix="branches-", dir=shared_memory.DIRECTORY) as directory:
        monkeypatch.setattr(shared_memory, "DIRECTORY", Path(directory))
        yield
        pieces._remove_all()
        assert not list(Path(directory).iterdir())


def refuse(*_: Any) -> Any:
    raise OSError(errno.EIO, "Input/output error")


def test_a_piece_without_a_name_is_let_go(monkeypatch):
    piece = Piece(8)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        piece.remove()  # as in a forked child
        assert piece.fd >= 0
    piece.remove()
    piece.remove()
    assert piece.fd == -1


def test_a_node_that_does_not_say_what_is_free(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr(os, "statvfs", refuse)
    with pytest.raises(NodeError, match="has an unknown number of bytes free, and 8 are needed"):
        Piece(8)


def test_a_name_that_nobody_can_take_away_is_not_claimed():
    path = shared_memory.path_of(NAME)
    path.mkdir()
    piece = Piece(8)
    with pytest.raises(NodeError, match="what has it cannot be removed"):
        piece.claim(NAME)
    with pytest.raises(NodeError, match="weights cannot be shared under that name"):
        piece.name(NAME)
    piece.remove()
    path.rmdir()


def test_a_name_that_is_given_anew_is_not_taken_away(monkeypatch):
    former, newer = Piece.of(NAME, b"former"), Piece(8)
    has = shared_memory.has

    def at_first(name: str, fd: int) -> bool:
        return name == NAME or has(name, fd)

    os.unlink(shared_memory.path_of(NAME))
    pieces._link(newer.fd, shared_memory.path_of(NAME))
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "has", at_first)
        former.unname()
    assert has(NAME, newer.fd)
    os.unlink(shared_memory.path_of(NAME))
    former.remove()
    newer.remove()


def test_at_the_end_of_a_process_its_names_go():
    Piece.of(NAME, b"weights")
    pieces._remove_all()
    assert shared_memory.names() == []


def test_others_are_not_seen(monkeypatch):
    other = shared_memory.DIRECTORY / "of-another-program"
    other.touch()
    shared_memory.path_of(NAME).write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 77)
        assert shared_memory.names() == []
        assert shared_memory.read(NAME) is None
    assert list(shared_memory.sweep()) == [NAME]
    assert not shared_memory.is_left_over(NAME)
    other.unlink()


def test_a_rank_that_runs_already_is_not_started_again():
    said = f"meets at here runs already.*{os.getpid()} was"
    with Elsewhere(lambda: Rendezvous("branches", 0)), pytest.raises(MismatchError, match=said):
        Rendezvous("branches", 0, "here")
    first = Rendezvous("branches", 0)
    second = Rendezvous("branches", 0)  # another model of the same process
    first.close()
    second.close()


def test_who_is_missing_has_ended_or_died_is_told():
    mine = Rendezvous("branches", 0)
    mine.publish("plan", "mine")
    with pytest.raises(TransportError, match="rank 1 did not come to compare notes"):
        mine.read("plan", (0, 1))
    path = shared_memory.path_of(f"{NAME}-plan-1")
    path.write_bytes(b'"of the dead"')
    assert mine.look("plan", 1) is None
    shared_memory.path_of(f"{NAME}-end-1").write_bytes(b'"it cannot"')
    with pytest.raises(TransportError, match="rank 1 ended: it cannot"):
        mine.read("plan", (0, 1))
    mine.close()
    shared_memory.sweep()


def test_a_document_that_is_always_shown_anew_is_given_up(monkeypatch):
    mine = Rendezvous("branches", 0)
    shared_memory.path_of(f"{NAME}-plan-1").write_bytes(b'"of the dead"')
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "has", lambda name, fd: False)
        assert mine.look("plan", 1) is None
    mine.close()
    shared_memory.sweep()


@pytest.mark.parametrize("text", ["0", "600s"])
def test_a_patience_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="give a whole number of seconds"):
        rendezvous.patience_of({"VLLM_ENGINE_READY_TIMEOUT_S": text})


class Stored:
    """Rank 0's weights of layer 3, in a process of their own, and what it hands over."""

    def __init__(self) -> None:
        self.exports = PosixExports("branches", 0)
        self.exports.store(3, [torch.arange(6.0)])
        self.handles = self.exports.handles()
        shared_memory.mine.clear()  # as a peer sees them, in a process of its own

    def remove(self) -> None:
        self.exports._end()
        shared_memory.sweep()


@pytest.fixture
def stored() -> Iterator[Stored]:
    found = Stored()
    yield found
    found.remove()


def test_a_peer_follows_a_rank_that_is_started_again(stored):
    peer = PosixExports("branches", 1)
    (seen,) = peer.open(0, stored.handles, SIZES)[3]
    peer.reopen(0, stored.handles)
    assert seen.view(torch.float).tolist() == list(range(6))
    again = Stored()
    peer.reopen(0, again.handles)
    again.remove()
    with pytest.raises(TransportError, match="no longer has the weights that it handed over"):
        peer.reopen(0, {**again.handles, "incarnation": "a third"})
    peer.check_peers()


def test_a_piece_of_another_length_is_not_shown(stored):
    shorter = shared_memory.path_of(f"{NAME}-rank0-3")
    os.truncate(shorter, 8)
    with pytest.raises(TransportError, match="no longer has the weights"):
        PosixExports("branches", 1).open(0, stored.handles, SIZES)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"host": "another boot"}, NodeError, "pulls reach within one node"),
        ({"stored": {}}, MismatchError, "other weights than the plan gives it"),
        ({"stored": {"3": {"file": True, "sizes": [24]}}}, MismatchError, "no handles of shared"),
        ({"name": "../forged"}, MismatchError, "a name that no piece of shared memory can have"),
    ],
)
def test_what_a_peer_does_not_map(stored, changed, error, said):
    with pytest.raises(error, match=said):
        PosixExports("branches", 1).open(0, {**stored.handles, **changed}, SIZES)


def test_a_node_that_cannot_be_told_is_named(stored, monkeypatch):
    monkeypatch.setattr(posix, "boot_id", refuse)
    with pytest.raises(NodeError, match="which node this is cannot be told"):
        stored.exports.whereabouts()


def test_a_report_is_written_again_once_for_many_forwards(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_REFRESH_SECONDS", 0.2)
    written: list[str] = []
    one = Report(str(tmp_path), 0, [], {})
    monkeypatch.setattr(one, "write", lambda: written.append("once"))
    for _ in range(3):
        one.refresh()
    timer = one._timer
    assert timer is not None
    timer.join()
    assert written == ["once"]
