"""Schedules: which ranks share what, what fails in a reload, and who tries again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

LAYERS = 5
PATIENCE_S = 1.0
PAUSE_S = 1.7 * PATIENCE_S
"""Longer than a rank's patience."""

SHOWS = 5
"""How many documents a rank shows in a reload that nothing disturbs: ready, bound or a proposal, go
and how it has ended."""


@dataclass(frozen=True)
class Fault:
    """What happens to one rank. `at` counts the layers, or the documents that it shows."""

    rank: int
    kind: str
    """`allocation`, `copy`, `naming`, `kill`, `pause`, or `late`: asked too late."""
    where: str
    """`layer`, `show`, or `forward`: in the one that it is in when it is asked."""
    at: int
    after: bool = False
    """Of a document: as soon as it is shown, instead of before."""


@dataclass(frozen=True)
class Schedule:
    """`retry`: after the failure the rank that failed tries alone first, or all at once."""

    size: int
    sharing: str
    """`broadcast` or `pull` in lockstep, or `replicas`."""
    placement: str
    fault: Fault
    retry: str

    @property
    def kills(self) -> bool:
        """Whether a rank is gone afterwards."""
        return self.fault.kind == "kill"


def schedules(count: int, seed: int = 1) -> list[Schedule]:
    """So many of all that there are, each once; the first few are of every kind."""
    by_kind: dict[tuple[str, str], list[Schedule]] = {}
    for schedule in _all():
        fault = schedule.fault
        by_kind.setdefault((fault.kind, fault.where), []).append(schedule)
    draw = random.Random(seed)
    for kind in by_kind.values():
        draw.shuffle(kind)
    chosen: list[Schedule] = []
    while len(chosen) < count and any(by_kind.values()):
        for kind in by_kind.values():
            if kind and len(chosen) < count:
                chosen.append(kind.pop())
    return chosen


def _all() -> Iterator[Schedule]:
    sharings = [
        ("broadcast", "round_robin"),
        ("pull", "round_robin"),
        ("pull", "striped"),
        ("replicas", "round_robin"),
        ("replicas", "striped"),
    ]
    for size, (sharing, placement), retry in product((2, 3), sharings, ("one", "all")):
        for fault in _faults(size):
            if sharing != "broadcast" or fault.where != "forward":
                yield Schedule(size, sharing, placement, fault, retry)


def _faults(size: int) -> Iterator[Fault]:
    for rank in range(size):
        for kind, at in product(("allocation", "copy", "kill", "pause"), range(LAYERS)):
            yield Fault(rank, kind, "layer", at)
        for kind, at, after in product(("naming", "kill", "pause"), range(SHOWS), (False, True)):
            yield Fault(rank, kind, "show", at, after)
        for at in range(LAYERS):
            yield Fault(rank, "pause", "forward", at)
        yield Fault(rank, "late", "layer", 0)
