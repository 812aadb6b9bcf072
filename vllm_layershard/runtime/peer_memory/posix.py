"""PosixExports: weights in POSIX shared memory, which the other ranks map read-only (CPU).

Each position that a rank stores is a piece of its own: see the notes in piece.py. A peer
that dies takes nothing along: its pages stay for as long as they are mapped. One that is started
again stores the same bytes in other pages, which its peers see from the next reload on.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch

from vllm_layershard.errors import NodeError, TransportError
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.peer_memory.base import (
    Exports,
    Parts,
    Sizes,
    checked_sizes,
    strange_handles,
)
from vllm_layershard.runtime.peer_memory.boot import boot_id
from vllm_layershard.runtime.piece import Piece
from vllm_layershard.runtime.tensors import byte_line, placed_like
from vllm_layershard.runtime.window import Window

_ALIGNED_BYTES = 64

_Span = tuple[int, int]
"""Where a tensor begins in its piece, and its bytes."""


@contextmanager
def _mapping(nbytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NodeError(
            f"{nbytes:,} bytes of shared memory cannot be mapped ({error.strerror}); raise the "
            "limits of mappings (vm.max_map_count) and of memory (ulimit -v), or use transport "
            "'broadcast'"
        ) from None


class _Stored:
    """A position in this rank's own memory."""

    def __init__(self, spans: Sequence[_Span]) -> None:
        nbytes = sum(spans[-1])
        self.piece = Piece(nbytes)
        try:
            with _mapping(nbytes):
                self.window = Window(nbytes)
                self.window.show(self.piece.fd, writable=True)
        except NodeError:
            self.piece.remove()
            raise
        self.sizes = tuple(nbytes for _, nbytes in spans)

    def handle(self) -> dict[str, Any]:
        return {"file": self.piece.inode, "sizes": self.sizes}


class _Seen:
    """A position in a peer's memory: the piece that it names, and no other, is ever shown."""

    def __init__(self, name: str, sizes: Sizes) -> None:
        self._name = name
        self.spans = _spans(sizes)
        self._nbytes = sum(self.spans[-1])
        with _mapping(self._nbytes):
            self.window = Window(self._nbytes)

    def try_show(self, file: int) -> bool:
        """Show the piece, if it is there, of that inode, and as long as the plan says."""
        fd = shared_memory.open_to_read(self._name)
        if fd is None:
            return False
        try:
            with shared_memory.reading(self._name):
                found = os.fstat(fd)
            if (found.st_ino, found.st_size) != (file, self._nbytes):
                return False
            with _mapping(self._nbytes):
                self.window.show(fd, writable=False)
        finally:
            shared_memory.close(fd)
        return True


class PosixExports(Exports):
    """`name` is in the names of all pieces; peers that restart give theirs the same ones again."""

    def __init__(self, name: str, rank: int) -> None:
        self._rank = rank
        self._name = name
        self._incarnation = secrets.token_hex(8)
        self._stored: dict[int, _Stored] = {}
        self._seen: dict[int, dict[int, _Seen]] = {}
        """By global rank and position."""
        self._shows: dict[int, str] = {}
        """The incarnation of each rank that is seen."""
        self._end = weakref.finalize(self, _remove, self._stored)

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        lines = [byte_line(tensor) for tensor in tensors]
        spans = _spans(tuple(line.numel() for line in lines))
        self._stored[position] = stored = _Stored(spans)
        moved = []
        for tensor, line, span in zip(tensors, lines, spans, strict=True):
            part = stored.window.part(*span)
            part.copy_(line)
            moved.append(placed_like(tensor, part))
        return tuple(moved)

    def handles(self) -> Any:
        """The pieces have their names as soon as it is called."""
        for position, stored in self._stored.items():
            stored.piece.name(_name(self._name, self._rank, position))
        return self.whereabouts()

    def whereabouts(self) -> Any:
        return {
            "host": _node(),
            "hostname": socket.gethostname(),
            "name": self._name,
            "incarnation": self._incarnation,
            "stored": {str(position): stored.handle() for position, stored in self._stored.items()},
        }

    def open(self, rank: int, handles: Any, expected: Mapping[int, Sizes]) -> Mapping[int, Parts]:
        where = _read(rank, handles)
        if where.host != _node():
            raise NodeError(
                f"rank {self._rank} on {socket.gethostname()} cannot read the memory of rank "
                f"{rank} on {where.hostname}: pulls reach within one node, and within one "
                f"container's {shared_memory.DIRECTORY}; keep each group on one node, or use "
                "transport 'broadcast' where its ranks run in lockstep"
            )
        checked_sizes(rank, where.sizes, expected)
        self._seen[rank] = {
            position: _Seen(_name(where.name, rank, position), sizes)
            for position, sizes in expected.items()
        }
        self._show(rank, where)
        return {
            position: tuple(seen.window.part(*span) for span in seen.spans)
            for position, seen in self._seen[rank].items()
        }

    def reopen(self, rank: int, whereabouts: Any) -> None:
        where = _read(rank, whereabouts)
        if where.incarnation != self._shows[rank]:
            expected = {position: _sizes(seen.spans) for position, seen in self._seen[rank].items()}
            checked_sizes(rank, where.sizes, expected)
            self._show(rank, where)

    def _show(self, rank: int, where: _Where) -> None:
        for position, seen in self._seen[rank].items():
            if not seen.try_show(where.files[position]):
                raise TransportError(
                    f"rank {self._rank}: rank {rank} no longer has the weights that it handed "
                    "over: it has ended, or was started again; restart all ranks of this model "
                    "together"
                )
        self._shows[rank] = where.incarnation

    def settle(self) -> None:
        for stored in self._stored.values():
            stored.piece.unname()

    def check_peers(self) -> None:
        """Mapped pages stay."""


class _Where:
    """Where a rank's pieces are, as it says; every value is of the right kind."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self.host = str(handles["host"])
        self.hostname = str(handles["hostname"])
        self.name = str(handles["name"])
        self.incarnation = str(handles["incarnation"])
        stored = {_whole(key): handle for key, handle in handles["stored"].items()}
        self.files = {position: _whole(one["file"]) for position, one in stored.items()}
        self.sizes = {
            position: tuple(_whole(nbytes) for nbytes in one["sizes"])
            for position, one in stored.items()
        }


def _read(rank: int, handles: Any) -> _Where:
    try:
        where = _Where(handles)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise strange_handles(rank, "no handles of shared memory") from None
    if not re.fullmatch(r"[A-Za-z0-9@._-]{1,160}", where.name):
        raise strange_handles(rank, "a name that no piece of shared memory can have")
    return where


def _whole(value: Any) -> int:
    """A number that JSON may have as text, where it was a key."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(value)
    return int(value)


def _spans(sizes: Sizes) -> tuple[_Span, ...]:
    """Tensors of these sizes, one behind the other in a piece."""
    ends = accumulate(_aligned(nbytes) for nbytes in sizes)
    return tuple((end - _aligned(nbytes), nbytes) for end, nbytes in zip(ends, sizes, strict=True))


def _sizes(spans: Sequence[_Span]) -> Sizes:
    return tuple(nbytes for _, nbytes in spans)


def _name(name: str, rank: int, position: int) -> str:
    return f"{shared_memory.PREFIX}{name}-rank{rank}-{position}"


def _node() -> str:
    """This boot of this node, and this shared memory: containers may have one of their own."""
    try:
        return f"{boot_id()} {os.stat(shared_memory.DIRECTORY).st_dev}"
    except OSError as error:
        raise NodeError(
            f"which node this is cannot be told ({error.filename}: {error.strerror}); mount /proc "
            f"and {shared_memory.DIRECTORY}, or use transport 'broadcast'"
        ) from None


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _remove(stored: dict[int, _Stored]) -> None:
    for one in stored.values():
        one.piece.remove()
