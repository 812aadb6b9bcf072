"""SharedNeed: what a rank takes of its node's shared memory, where a CPU pulls weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vllm_layershard.plan.plan import Plan, SeriesPlan

_PAGE_BYTES = 4096
"""Memory is given in pages. A node with larger ones takes at most one of them more a piece."""


class SharedNeed(NamedTuple):
    """`nbytes` of shared memory in `pieces`, each of which takes a file descriptor of the rank."""

    nbytes: int
    pieces: int


def shared_need(plans: Iterable[tuple[Plan, int]]) -> SharedNeed:
    """What one rank stores: `plans` are those of its groups, each with its group rank there.

    A piece holds one layer that it owns, or its stripe of one. A reload is in place: it takes no
    second copy.
    """
    pieces = [
        nbytes for plan, rank in plans for one in plan.series for nbytes in _pieces(one, rank)
    ]
    pages = sum(-(-nbytes // _PAGE_BYTES) for nbytes in pieces)
    return SharedNeed(pages * _PAGE_BYTES, len(pieces))


def _pieces(series_plan: SeriesPlan, group_rank: int) -> Iterator[int]:
    """The bytes of each piece of one series on one rank."""
    if not series_plan.moves:
        return
    layer_bytes = series_plan.series.layer_bytes
    for position in range(len(series_plan.series)):
        if series_plan.is_striped:
            start, end = series_plan.stripes[group_rank]
            if start < end:
                yield end - start
        elif series_plan.is_resident(position, group_rank):
            yield layer_bytes
