"""Decision: the plan for some of a model's linears, and where their boundaries are in the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.hosts.boundary import boundary_of
from vllm_layershard.plan import GroupPlan, Linear, ParallelLayout, group_plans
from vllm_layershard.plan.linear import suffix_of


class Decision(NamedTuple):
    """What the ranks of one group obey.

    Position p of series s stands at the boundary of the decoder layer of path `boundaries[s][p]`.
    """

    group_plan: GroupPlan
    boundaries: tuple[tuple[str, ...], ...]


def decide(
    selected: Mapping[str, Sequence[Linear]],
    config: LayerShardConfig,
    layout: ParallelLayout,
    pp_stage: int,
    paths: Mapping[str, str],
) -> tuple[Decision, ...]:
    """Decide everything for one pipeline stage; no effect.

    `selected` are the stage's linears of each name, `paths` their paths in the model by prefix.

    Raises:
        PlanError: a group of one rank, or a prefetch_step too large for a series.
    """
    named = [linear for members in selected.values() for linear in members]

    def boundaries(group_plan: GroupPlan, index: int) -> tuple[str, ...]:
        series = group_plan.plan.series[index].series
        return tuple(
            boundary_of(paths[_alike(linear, named, series.boundary(position)).prefix])
            for position, linear in enumerate(group_plan.linears[index])
        )

    return tuple(
        Decision(plan, tuple(boundaries(plan, index) for index in range(len(plan.linears))))
        for plan in group_plans(selected, config, layout, pp_stage)
    )


def _alike(linear: Linear, named: Iterable[Linear], layer_id: int) -> Linear:
    """The linear of the same name in another layer."""
    suffix = suffix_of(linear.prefix)
    return next(x for x in named if x.layer_id == layer_id and suffix_of(x.prefix) == suffix)
