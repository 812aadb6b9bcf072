"""Each forward that the planner looks at, event by event, as the plan moves it."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.config import Move
from vllm_layershard.estimate import Estimate, Forecast, Forward, PhaseName
from vllm_layershard.models import Sharding


class Timeline(NamedTuple):
    """A forward of `tokens` a rank, of the pipeline stage that loses most.

    It moves what `moves` says, weights or activations. `by_rows`: each rank computes its rows of a
    linear whose activations move, in the place of an owner. `forward` is None where the device
    lacks a number that the collectives of activations need.
    """

    phase: PhaseName
    tokens: int
    moves: Move
    by_rows: bool
    forward: Forward | None


def timelines_of(sharding: Sharding, estimate: Forecast) -> tuple[Timeline, ...]:
    """One for each phase; none where nothing is estimated.

    Forwards that move weights have the spans of the estimate, if it is traced.
    """
    if not isinstance(estimate, Estimate):
        return ()
    phases = [(phase.name, phase.batch, phase.asked.forward) for phase in estimate.phases]
    if sharding.config.move == "weights" or not sharding.moves:
        return tuple(
            Timeline(name, batch.tokens, "weights", False, forward)
            for name, batch, forward in phases
        )
    from vllm_layershard.estimate.activations.clock import clock_of  # seldom asked for
    from vllm_layershard.plan.move import move_rule

    rule, by_rows = move_rule(sharding.config), sharding.config.cuts_rows
    clock = clock_of(sharding, estimate.hardware)
    return tuple(
        Timeline(name, batch.tokens, "weights", by_rows, forward)
        if rule.moves_weights([batch.tokens])
        else Timeline(
            name, batch.tokens, "activations", by_rows, clock.trace(batch) if clock else None
        )
        for name, batch, forward in phases
    )
