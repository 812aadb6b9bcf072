"""Schedule: which slot a position uses, and at which boundary its movement starts.

Note [A self-contained forward]
A boundary is the moment just before a decoder layer runs; that of position p is its layer's, or
for position 0 that of the layer ahead of it which every rank keeps (Series.boundary). At the
boundary of position 0 the movements of the first `num_slots` positions start. At that of p > 0
the movement of position p + prefetch_step starts, into the slot that p - 1 has left:
slot[p + step] == slot[p - 1], because num_slots == step + 1. So in every forward each movement
starts once, in ascending order of position, never earlier than its slot is free and never later
than its own boundary. Nothing is in flight after the last position is waited for. The map from
position to slot is the same in every forward, which is what a captured graph needs.
"""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.errors import PlanError
from vllm_layershard.plan.series import Series


class Schedule(NamedTuple):
    """For each position p: `slot[p]`, and `launch_at[p]`, the position at whose boundary it starts.

    `launches[p]` is the same the other way round: the positions that start at the boundary of p.
    """

    num_slots: int
    slot: tuple[int, ...]
    launch_at: tuple[int, ...]
    launches: tuple[tuple[int, ...], ...]


def schedule_of(series: Series, prefetch_step: int, layer_stride: int = 1) -> Schedule:
    """The static schedule of one series.

    Raises:
        PlanError: the slots would hold the whole series, so that nothing could be saved.
    """
    n = len(series)
    if prefetch_step >= n:
        layers = "1 layer" if n == 1 else f"{n} layers"
        given = [
            *([f"layer_stride {layer_stride}"] if layer_stride > 1 else []),
            *(["keep_first"] if series.kept_layer is not None else []),
        ]
        left = f" left with {' and '.join(given)}" if given else ""
        lower = "lower it" if layer_stride == 1 else "lower layer_stride, or prefetch_step"
        without = "" if series.kept_layer is None else ", do without keep_first"
        raise PlanError(
            f"series {series.name!r} has {layers}{left}; prefetch_step {prefetch_step} needs at "
            f"least {prefetch_step + 1}: {lower} to at most {n - 1}{without} or leave "
            f"{series.configured!r} out"
        )
    num_slots = prefetch_step + 1
    launch_at = tuple(max(0, p - prefetch_step) for p in range(n))
    launches: list[list[int]] = [[] for _ in range(n)]
    for position, boundary in enumerate(launch_at):
        launches[boundary].append(position)
    return Schedule(
        num_slots=num_slots,
        slot=tuple(p % num_slots for p in range(n)),
        launch_at=launch_at,
        launches=tuple(map(tuple, launches)),
    )


def stay_put(series: Series) -> Schedule:
    """The schedule of a series whose layers every rank stores: no slots, no starts."""
    n = len(series)
    return Schedule(num_slots=0, slot=(), launch_at=(), launches=((),) * n)
