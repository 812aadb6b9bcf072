"""HostExports: weights in POSIX shared memory, which the other ranks map read-only (CPU).

Every version of every position is a piece of its own: see the notes in shared_memory.py. A peer
that dies takes nothing along: its pages stay for as long as they are mapped.
"""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from vllm_layershard.errors import HostError, TransportError
from vllm_layershard.runtime import shared_memory
from vllm_layershard.runtime.exports.base import Exports, Parts
from vllm_layershard.runtime.shared_memory import Piece, Window
from vllm_layershard.runtime.tensors import byte_line, placed_like

PATIENCE_S = 180.0
"""How long a rank that was given new weights waits for a peer to be given them, too."""

_LOOK_S = 0.05
_ALIGNED_BYTES = 64


class _Kept:
    """A position in this rank's own memory."""

    def __init__(self, nbytes: int, spans: tuple[tuple[int, int], ...]) -> None:
        self.spans = spans
        self.window = Window(nbytes)
        self.piece = Piece(nbytes)
        self.window.show(self.piece.fd, writable=True)
        self.version = 0


class _Seen:
    """A position in a peer's memory."""

    def __init__(self, prefix: str, position: int, nbytes: int) -> None:
        self.prefix = prefix
        self.position = position
        self.window = Window(nbytes)
        self.version = -1

    def try_next(self) -> bool:
        """Show the next version, if it is there."""
        fd = shared_memory.open_to_read(_name(self.prefix, self.position, self.version + 1))
        if fd is None:
            return False
        try:
            self.window.show(fd, writable=False)
        finally:
            os.close(fd)
        self.version += 1
        return True


class HostExports(Exports):
    """`name` is in the names of all pieces; peers that restart give theirs the same ones again."""

    def __init__(self, name: str, rank: int) -> None:
        self._rank = rank
        self._prefix = f"{shared_memory.PREFIX}{name}-rank{rank}"
        self._alive = Piece.of(f"{self._prefix}-alive", b"")
        self._kept: dict[int, _Kept] = {}
        self._seen: dict[tuple[int, int], _Seen] = {}
        self._end = weakref.finalize(self, _remove, self._alive, self._kept)

    def keep(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        lines = [byte_line(tensor) for tensor in tensors]
        ends = accumulate(_aligned(line.numel()) for line in lines)
        spans = tuple(
            (end - _aligned(line.numel()), line.numel())
            for end, line in zip(ends, lines, strict=True)
        )
        kept = _Kept(sum(spans[-1]), spans)
        self._kept[position] = kept
        moved = []
        for tensor, line, span in zip(tensors, lines, spans, strict=True):
            part = kept.window.part(*span)
            part.copy_(line)
            moved.append(placed_like(tensor, part))
        return tuple(moved)

    def handles(self) -> Any:
        for position, kept in self._kept.items():
            kept.piece.name(_name(self._prefix, position, kept.version))
        return {
            "host": _host(),
            "hostname": socket.gethostname(),
            "prefix": self._prefix,
            "spans": {str(position): kept.spans for position, kept in self._kept.items()},
        }

    def open(self, rank: int, handles: Any) -> Mapping[int, Parts]:
        if handles["host"] != _host():
            raise HostError(
                f"rank {self._rank} on {socket.gethostname()} cannot read the memory of rank "
                f"{rank} on {handles['hostname']}: pulls reach within one host, and within one "
                f"container's {shared_memory.DIRECTORY}; keep each group on one host, or use "
                "transport 'broadcast' where its ranks run in lockstep"
            )
        opened = {}
        for key, spans in handles["spans"].items():
            position = int(key)
            seen = _Seen(handles["prefix"], position, sum(spans[-1]))
            if not seen.try_next():
                raise TransportError(
                    f"rank {self._rank}: rank {rank} no longer has the weights that it was started "
                    "with: it has ended, or was given others since; restart all ranks of this "
                    "model together"
                )
            self._seen[rank, position] = seen
            opened[position] = tuple(seen.window.part(*span) for span in spans)
        return opened

    def settle(self) -> None:
        for piece in (self._alive, *(kept.piece for kept in self._kept.values())):
            piece.unname()

    def renew(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        kept = self._kept[position]
        former, kept.piece = kept.piece, Piece(kept.piece.nbytes)
        for tensor, (start, _) in zip(tensors, kept.spans, strict=True):
            os.pwrite(kept.piece.fd, byte_line(tensor.contiguous()).numpy().data, start)
        kept.version += 1
        kept.piece.name(_name(self._prefix, position, kept.version))
        kept.window.show(kept.piece.fd, writable=True)
        former.remove()

    def follow(self, rank: int, position: int) -> None:
        seen = self._seen[rank, position]
        deadline = time.monotonic() + PATIENCE_S
        while not seen.try_next():
            gone = shared_memory.read(f"{seen.prefix}-alive") is None
            if gone or shared_memory.is_left_over(f"{seen.prefix}-alive"):
                raise TransportError(
                    f"rank {self._rank} was given new weights, and rank {rank} has ended without "
                    "them; restart both on the new weights"
                )
            if time.monotonic() > deadline:
                raise TransportError(
                    f"rank {self._rank} was given new weights, and rank {rank} was not within "
                    f"{PATIENCE_S:g} s; reload the weights of all replicas"
                )
            time.sleep(_LOOK_S)

    def check_peers(self) -> None:
        """Nothing to see: pages that are mapped stay."""


def _name(prefix: str, position: int, version: int) -> str:
    return f"{prefix}-{position}-v{version}"


def _host() -> str:
    """This boot of this machine, and this shared memory: containers may have one of their own."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat(shared_memory.DIRECTORY).st_dev}"


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _remove(alive: Piece, kept: dict[int, _Kept]) -> None:
    for piece in (alive, *(one.piece for one in kept.values())):
        piece.remove()
