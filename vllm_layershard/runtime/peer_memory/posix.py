"""PosixExports: weights in POSIX shared memory, which the other ranks map read-only (CPU).

Among ranks that do not wait for each other every version of every position is a piece of its own:
see the notes in shared_memory.py. A peer that dies takes nothing along: its pages stay for as long
as they are mapped.

Note [Which versions are retained]
A reload makes the next version on each rank when that gets to it, and a rank reads of the others
the version that it has itself. So an owner retains each version that a living peer has yet to see:
peers tell which one they see.
"""

from __future__ import annotations

import json
import os
import socket
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from vllm_layershard.errors import NodeError, TransportError
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.peer_memory.base import Exports, Parts
from vllm_layershard.runtime.peer_memory.boot import boot_id
from vllm_layershard.runtime.shared_memory import Piece
from vllm_layershard.runtime.tensors import byte_line, placed_like
from vllm_layershard.runtime.window import Window

PATIENCE_S = 180.0
"""How long a rank that was given new weights waits for a peer to be given them, too."""

_LOOK_S = 0.05
_ALIGNED_BYTES = 64


class _Stored:
    """A position in this rank's own memory."""

    def __init__(self, nbytes: int, spans: tuple[tuple[int, int], ...]) -> None:
        self.spans = spans
        self.window = Window(nbytes)
        self.piece = Piece(nbytes)
        self.window.show(self.piece.fd, writable=True)
        self.tensors: tuple[torch.Tensor, ...] = ()
        self.version = 0
        self.retained: dict[int, Piece] = {}
        """Earlier versions that a peer may still want."""

    def reload(self, tensors: Sequence[torch.Tensor]) -> Piece:
        """A piece that holds these tensors as this one holds those it was made for."""
        piece = Piece(self.piece.nbytes)
        window = Window(piece.nbytes)
        window.show(piece.fd, writable=True)
        for tensor, alike, span in zip(tensors, self.tensors, self.spans, strict=True):
            placed_like(alike, window.part(*span)).copy_(tensor)
        return piece

    def let_go(self, seen: int) -> None:
        """Of the versions that every peer sees, or has passed."""
        for version in [version for version in self.retained if version <= seen]:
            self.retained.pop(version).remove()


class _Seen:
    """A position in a peer's memory."""

    def __init__(self, prefix: str, position: int, nbytes: int) -> None:
        self.prefix = prefix
        self.position = position
        self.nbytes = nbytes
        self.window = Window(nbytes)

    def try_show(self, version: int) -> bool:
        """Show this version, if it is there."""
        fd = shared_memory.open_to_read(_name(self.prefix, self.position, version))
        if fd is None:
            return False
        try:
            if os.fstat(fd).st_size < self.nbytes:
                return False  # another model's
            self.window.show(fd, writable=False)
        finally:
            os.close(fd)
        return True


class PosixExports(Exports):
    """`name` is in the names of all pieces; peers that restart give theirs the same ones again."""

    def __init__(self, name: str, rank: int) -> None:
        self._rank = rank
        self._prefix = f"{shared_memory.PREFIX}{name}-rank{rank}"
        self._alive = Piece.of(f"{self._prefix}-alive", b"")
        self._stored: dict[int, _Stored] = {}
        self._seen: dict[tuple[int, int], _Seen] = {}
        self._peers: set[str] = set()
        self._sees: dict[str, int] = {}
        self._told: list[Piece] = []
        """What this rank sees, as the others read it: one piece, once it has followed."""
        self._end = weakref.finalize(self, _remove, self._alive, self._told, self._stored)

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        lines = [byte_line(tensor) for tensor in tensors]
        ends = accumulate(_aligned(line.numel()) for line in lines)
        spans = tuple(
            (end - _aligned(line.numel()), line.numel())
            for end, line in zip(ends, lines, strict=True)
        )
        stored = _Stored(sum(spans[-1]), spans)
        self._stored[position] = stored
        moved = []
        for tensor, line, span in zip(tensors, lines, spans, strict=True):
            part = stored.window.part(*span)
            part.copy_(line)
            moved.append(placed_like(tensor, part))
        stored.tensors = tuple(moved)
        return stored.tensors

    def handles(self) -> Any:
        for position, stored in self._stored.items():
            stored.piece.name(_name(self._prefix, position, stored.version))
        return {
            "host": _node(),
            "hostname": socket.gethostname(),
            "prefix": self._prefix,
            "spans": {str(position): stored.spans for position, stored in self._stored.items()},
        }

    def open(self, rank: int, handles: Any) -> Mapping[int, Parts]:
        if handles["host"] != _node():
            raise NodeError(
                f"rank {self._rank} on {socket.gethostname()} cannot read the memory of rank "
                f"{rank} on {handles['hostname']}: pulls reach within one node, and within one "
                f"container's {shared_memory.DIRECTORY}; keep each group on one node, or use "
                "transport 'broadcast' where its ranks run in lockstep"
            )
        self._peers.add(handles["prefix"])
        opened = {}
        for key, spans in handles["spans"].items():
            position = int(key)
            seen = _Seen(handles["prefix"], position, sum(spans[-1]))
            if not seen.try_show(0):
                raise TransportError(
                    f"rank {self._rank}: rank {rank} no longer has the weights that it was started "
                    "with: it has ended, or was given others since; restart all ranks of this "
                    "model together"
                )
            self._seen[rank, position] = seen
            opened[position] = tuple(seen.window.part(*span) for span in spans)
        return opened

    def settle(self, *, followed: bool) -> None:
        for stored in self._stored.values():
            stored.piece.unname()
        if not followed:
            self._alive.unname()

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        stored = self._stored[position]
        piece = stored.reload(tensors)
        stored.retained[stored.version], stored.piece = stored.piece, piece
        stored.version += 1
        piece.name(_name(self._prefix, position, stored.version))
        stored.window.show(piece.fd, writable=True)
        self._let_go()

    def follow(self, versions: Mapping[tuple[int, int], int]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        for (rank, position), version in versions.items():
            seen = self._seen[rank, position]
            while not seen.try_show(version):
                self._look_after(rank, seen.prefix, deadline)
                time.sleep(_LOOK_S)
            self._sees[f"{seen.prefix}-{position}"] = version
        self._told.append(Piece.of(f"{self._prefix}-sees", json.dumps(self._sees).encode()))
        for earlier in self._told[:-1]:
            earlier.remove()
            self._told.remove(earlier)

    def _look_after(self, rank: int, prefix: str, deadline: float) -> None:
        """Raise if a rank that is waited for is gone, or has been for too long."""
        if not _lives(prefix):
            raise TransportError(
                f"rank {self._rank} was given new weights, and rank {rank} has ended without "
                "them; restart both on the new weights"
            )
        if time.monotonic() > deadline:
            raise TransportError(
                f"rank {self._rank} was given new weights, and rank {rank} was not within "
                f"{PATIENCE_S:g} s; reload the weights of all replicas"
            )

    def _let_go(self) -> None:
        """Remove versions that no living peer will ask for: note [Which versions are retained]."""
        documents = [shared_memory.read(f"{p}-sees") for p in self._peers if _lives(p)]
        sees = [{} if document is None else json.loads(document) for document in documents]
        for position, stored in self._stored.items():
            key = f"{self._prefix}-{position}"
            stored.let_go(min((one.get(key, 0) for one in sees), default=stored.version))

    def check_peers(self) -> None:
        """Mapped pages stay. Versions that all peers have passed need not be retained."""
        if any(stored.retained for stored in self._stored.values()):
            self._let_go()


def _name(prefix: str, position: int, version: int) -> str:
    return f"{prefix}-{position}-v{version}"


def _lives(prefix: str) -> bool:
    """Whether the rank of this prefix still runs."""
    alive = f"{prefix}-alive"
    return shared_memory.read(alive) is not None and not shared_memory.is_left_over(alive)


def _node() -> str:
    """This boot of this node, and this shared memory: containers may have one of their own."""
    return f"{boot_id()} {os.stat(shared_memory.DIRECTORY).st_dev}"


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _remove(alive: Piece, told: list[Piece], stored: dict[int, _Stored]) -> None:
    for piece in (alive, *told, *(piece for one in stored.values() for piece in _pieces(one))):
        piece.remove()


def _pieces(stored: _Stored) -> Iterator[Piece]:
    yield stored.piece
    yield from stored.retained.values()
