"""The movements of one forward, in the order in which the link carries them.

Note [Slots]
A start writes a slot, which must have no reader left. It has none: the boundary of position p
comes after the linear of p - 1 in the compute's order, and a transport starts after all compute
given before (see plan/schedule.py). `by_layer` asserts it for every start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vllm_layershard.plan import Plan
from vllm_layershard.plan.linear import suffix_of


class Movement(NamedTuple):
    """One position of one series: started at a layer's boundary, waited for by a linear.

    `buffer` is the series and the slot that it writes; `seconds` what it takes alone.
    """

    layer_id: int
    suffix: str
    start_layer: int
    seconds: float
    buffer: tuple[str, int]


def movements(
    plan: Plan,
    prefixes: Sequence[Sequence[str]],
    seconds_of: Callable[[int], float],
    group_rank: int | None = None,
) -> tuple[Movement, ...]:
    """The movements of one forward of one group, in the order of series and starts.

    `prefixes[s][p]` is the linear at position p of series s, `seconds_of(bytes)` the time of one.
    With `group_rank` only those that this rank takes part in: a pull does not concern the owner.
    """
    found: list[Movement] = []
    for series_plan, names in zip(plan.series, prefixes, strict=True):
        series, schedule = series_plan.series, series_plan.schedule
        if not any(schedule.launches):
            continue
        seconds = seconds_of(series.layer_bytes)
        pool = f"{series.name} {series.tp_replicated}"
        found.extend(
            Movement(
                layer_id=series.layer_ids[position],
                suffix=suffix_of(names[position]),
                start_layer=series.boundary(boundary),
                seconds=seconds,
                buffer=(pool, schedule.slot[position]),
            )
            for boundary, started in enumerate(schedule.launches)
            for position in started
            if group_rank is None or not series_plan.is_resident(position, group_rank)
        )
    return tuple(found)


class MovesByLayer(NamedTuple):
    """The movements of a forward in the order of their starts, which is the order of the link.

    `started` has, for each layer that starts some, how many are started then. `awaited` has the
    last movement of each linear that waits, by its layer.
    """

    order: tuple[Movement, ...]
    started: Mapping[int, int]
    awaited: Mapping[int, Mapping[str, int]]
    seconds: float


def by_layer(moves: Sequence[Movement]) -> MovesByLayer:
    """Sort movements once for all forwards that have them. See the note [Slots]."""
    order = tuple(sorted(moves, key=lambda move: move.start_layer))
    started: dict[int, int] = {}
    awaited: dict[int, dict[str, int]] = {}
    reader: dict[tuple[str, int], int] = {}
    for i, move in enumerate(order):
        free = reader.get(move.buffer, -1) < move.start_layer <= move.layer_id
        assert free, f"{move.buffer} is written while it is still read"
        reader[move.buffer] = move.layer_id
        started[move.start_layer] = i + 1
        awaited.setdefault(move.layer_id, {})[move.suffix] = i
    return MovesByLayer(order, started, awaited, sum(move.seconds for move in order))
