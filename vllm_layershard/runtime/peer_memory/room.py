"""Room: whether a node has the memory that its ranks are going to share, before they take any.

A memory cgroup that runs full ends a process, and says nothing. So each rank tells the others what
it needs and what it finds free, before any of them makes a piece; then all judge the same figures,
and come to the same verdict. What ranks under one limit need is added up. One that has stored its
weights already, because only another has been started again, needs no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vllm_layershard.errors import NodeError
from vllm_layershard.plan import SharedNeed
from vllm_layershard.runtime.peer_memory.limits import Limit, descriptors_left, memory_limits

_SPARE_DESCRIPTORS = 64
"""For what a rank opens beside its pieces: files of the checkpoint, sockets, documents."""


class Room(NamedTuple):
    """What one rank needs, and what there was before it took any."""

    rank: int
    need: SharedNeed
    limits: tuple[Limit, ...]
    descriptors: int | None
    stored: bool

    @classmethod
    def found(cls, rank: int, need: SharedNeed, root: Path = Path("/")) -> Room:
        """As it is now. `rank` is global."""
        return cls(rank, need, tuple(memory_limits(root)), descriptors_left(root), stored=False)

    @classmethod
    def told(cls, document: Any) -> Room:
        """What another rank has told."""
        rank, need, limits, descriptors, stored = document
        each = tuple(Limit(*limit) for limit in limits)
        return cls(rank, SharedNeed(*need), each, descriptors, stored)


def require_room(rooms: Sequence[Room]) -> None:
    """Return if what all these ranks need is there. Every rank that calls it decides the same.

    Raises:
        NodeError: what is needed and by whom, what there is, which limit, and the remedy.
    """
    missing = [room for room in rooms if not room.stored and room.need.pieces]
    under: dict[str, list[tuple[Room, Limit]]] = {}
    for room in missing:
        for limit in room.limits:
            under.setdefault(limit.key, []).append((room, limit))
    for each in under.values():
        needed = sum(room.need.nbytes for room, _ in each)
        tightest = min((limit for _, limit in each), key=lambda limit: limit.free)
        if needed > tightest.free:
            raise NodeError(
                f"{tightest.name}: {needed:,} bytes are needed for weights that other ranks read "
                f"({_ranks([room for room, _ in each])}), and {tightest.free:,} are free; "
                f"{tightest.remedy}, shard fewer layers, or use transport 'broadcast' where the "
                "ranks run in lockstep"
            )
    for room in missing:
        needed = room.need.pieces + _SPARE_DESCRIPTORS
        if room.descriptors is not None and needed > room.descriptors:
            raise NodeError(
                f"rank {room.rank}: {needed:,} more file descriptors are needed, one for each "
                f"layer of which it stores weights that other ranks read, and the limit of open "
                f"files leaves {max(0, room.descriptors):,}; raise it (ulimit -n), or shard fewer "
                "layers"
            )


def _ranks(rooms: Sequence[Room]) -> str:
    who = ", ".join(str(room.rank) for room in rooms)
    return f"rank {who}" if len(rooms) == 1 else f"ranks {who}"
