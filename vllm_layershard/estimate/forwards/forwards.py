"""Forwards: runs forwards of one sharding on one device, with any batch and prefetch step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Final

from vllm_layershard.estimate.forwards.movements import Movement, MovesByLayer, by_layer, movements
from vllm_layershard.estimate.forwards.overlap import (
    TOLERANCE,
    Forward,
    TimedLayer,
    TimedOperation,
    simulate,
    trace,
)
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.estimate.transfer import Transfer
from vllm_layershard.models import Batch, Deployment, Model, Sharding, layer_operations
from vllm_layershard.plan import Plan, stage_layers
from vllm_layershard.plan.linear import suffix_of

_STEPS: Final = (0, 1, 2, 3, 4, 6, 8)
"""The prefetch steps that are compared."""


class Forwards:
    """Every rank of a pipeline stage does the same; of the stages, the one that loses most counts.

    Ranks that are not in lockstep wait only for what they pull themselves: one that owns least, and
    not the first layer, stands for all. The hardware lacks no number (`Hardware.lacking`).

    Raises:
        PlanError: ranks that pull from each other lie on several nodes.
    """

    def __init__(self, sharding: Sharding, hardware: Hardware) -> None:
        self._sharding = sharding
        self._stages = stage_layers(sharding.model.num_layers, sharding.deployment.layout.pp)
        self._like = _representatives(sharding.model, sharding.deployment)
        self._moves: dict[tuple[int, int], MovesByLayer] = {}
        self._run: dict[tuple[Batch, int, bool], Forward] = {}
        self._operations: dict[tuple[Batch, bool], Mapping[int, tuple[TimedOperation, ...]]] = {}
        self._transfer = Transfer(sharding, hardware)
        self._rooflines: dict[bool, Roofline] = {}
        self._hindrance = 0.0 if self._transfer.pulls else hardware.broadcast_slowdown.value

    def run(self, batch: Batch, prefetch_step: int, *, least: bool = False) -> Forward:
        """One forward, with the most contention of the device's, or the least."""
        least &= not self._is_certain
        key = (batch, prefetch_step, least)
        if key not in self._run:
            self._run[key] = max(self._simulated(batch, prefetch_step, least), key=_loss)
        return self._run[key]

    def by_stage(
        self, batch: Batch, prefetch_step: int, *, least: bool = False
    ) -> tuple[Forward, ...]:
        """One forward of each pipeline stage, with the most contention or the least."""
        return tuple(self._simulated(batch, prefetch_step, least and not self._is_certain))

    def _simulated(self, batch: Batch, prefetch_step: int, least: bool) -> Iterator[Forward]:
        for layers, moves in self._timed(batch, prefetch_step, least):
            yield simulate(layers, moves, self._hindrance)

    def trace(self, batch: Batch, prefetch_step: int) -> Forward:
        """One forward with its timeline."""
        return max(
            (
                trace(layers, moves, self._hindrance)
                for layers, moves in self._timed(batch, prefetch_step, least=False)
            ),
            key=_loss,
        )

    def stage(self, batch: Batch, pp_stage: int) -> list[TimedLayer]:
        """The operations of one forward that moves no weight, of a stage's layers."""
        timed = self._timed_operations(batch, least=False)
        return [TimedLayer(i, timed[self._like[i]]) for i in self._stages[pp_stage]]

    def recommended_step(self, batch: Batch) -> int:
        """The smallest prefetch step that hides.

        If none does, the smallest whose forward is within TOLERANCE of the fastest one.
        """
        every = [series for group in self._sharding.groups for series in group.plan.series]
        most = min((len(series.series) for series in every if series.moves), default=1)
        totals: dict[int, float] = {}
        for step in (step for step in _STEPS if step < most):
            forward = self.run(batch, step)
            if forward.hidden:
                return step
            totals[step] = forward.total
            near = forward.total <= (1 + TOLERANCE) * forward.fetch
            if near and forward.fetch > (1 + TOLERANCE) * forward.compute:
                break  # no forward is shorter than its movements, so none hides
        best = min(totals.values())
        return next(step for step, total in totals.items() if total <= best * (1 + TOLERANCE))

    @property
    def _is_certain(self) -> bool:
        least, most = self._transfer.contention
        return least == most

    def _timed(
        self, batch: Batch, prefetch_step: int, least: bool
    ) -> Iterator[tuple[list[TimedLayer], MovesByLayer]]:
        """What `simulate` wants, for each pipeline stage."""
        timed = self._timed_operations(batch, least)
        for stage, layer_ids in enumerate(self._stages):
            layers = [TimedLayer(i, timed[self._like[i]]) for i in layer_ids]
            yield layers, self._stage_moves(stage, prefetch_step, timed)

    def _timed_operations(
        self, batch: Batch, least: bool
    ) -> Mapping[int, tuple[TimedOperation, ...]]:
        """The operations of each kind of layer."""
        if least not in self._rooflines:
            self._rooflines[least] = self._transfer.roofline(least=least)
        roofline = self._rooflines[least]
        if (batch, least) not in self._operations:
            self._operations[batch, least] = {
                like: tuple(
                    TimedOperation(
                        suffix_of(operation.linear),
                        roofline.seconds(operation),
                        roofline.slowdown(operation),
                    )
                    for operation in layer_operations(
                        self._sharding.model.blueprint, like, self._sharding.deployment, batch
                    )
                )
                for like in set(self._like.values())
            }
        return self._operations[batch, least]

    def _stage_moves(
        self, stage: int, prefetch_step: int, timed: Mapping[int, tuple[TimedOperation, ...]]
    ) -> MovesByLayer:
        """The movements of a stage; `timed` is any batch's: their names are the same."""
        key = (stage, prefetch_step)
        if key not in self._moves:
            suffixes = {
                like: [op.suffix for op in operations] for like, operations in timed.items()
            }
            self._moves[key] = by_layer(
                [
                    _awaited(move, suffixes[self._like[move.layer_id]])
                    for group in self._sharding.groups
                    if group.pp_stage == stage
                    for move in movements(
                        group.plan.with_prefetch_step(prefetch_step),
                        group.prefixes,
                        partial(self._transfer.seconds, group=group),
                        self._pulling_rank(group.plan),
                    )
                ]
            )
        return self._moves[key]

    def _pulling_rank(self, plan: Plan) -> int | None:
        """The group rank whose own pulls are simulated; None where each waits for all of them."""
        if not self._transfer.pulls or self._sharding.deployment.layout.in_lockstep:
            return None

        def pulls(rank: int) -> tuple[int, int]:
            first = sum(not series.is_resident(0, rank) for series in plan.series)
            return plan.saved_bytes[rank], first

        return max(range(plan.group_size), key=pulls)


def _awaited(move: Movement, suffixes: list[str]) -> Movement:
    """A weight that no operation of its own reads is awaited by its layer's first operation."""
    return move if move.suffix in suffixes else move._replace(suffix=suffixes[0])


def _loss(forward: Forward) -> tuple[float, float]:
    """What a stage loses, to a picosecond; where stages lose alike, the one that computes least."""
    return round(forward.exposed, 12), -forward.compute


@lru_cache(maxsize=8)  # asked for each way to move the same model
def _representatives(model: Model, deployment: Deployment) -> Mapping[int, int]:
    """For each layer the first one whose linears are alike: its operations take as long."""
    kinds: dict[int, list[object]] = {}
    for linear in model.linears(deployment):
        kinds.setdefault(linear.layer_id, []).append((suffix_of(linear.prefix), linear.tensors))
    first: dict[tuple[object, ...], int] = {}
    return {layer_id: first.setdefault(tuple(kind), layer_id) for layer_id, kind in kinds.items()}
