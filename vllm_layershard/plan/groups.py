"""GroupPlan: from the linears that are found to the plan of every group of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vllm_layershard.config import LayerShardConfig, TransportName
from vllm_layershard.errors import PlanError
from vllm_layershard.plan.layout import ParallelLayout
from vllm_layershard.plan.linear import Linear, no_match, none_left
from vllm_layershard.plan.plan import Plan, build_plan
from vllm_layershard.plan.series import Series, as_processed, by_group, in_stride, series_of


class GroupPlan(NamedTuple):
    """The plan that every group of one kind in one pipeline stage obeys, and how its weights move.

    `ranks[g]` are the global ranks of group g in group-rank order. `linears[s][p]` is the linear
    at position p of the plan's series s; `tp_replicated` and `tp_copies` are theirs.
    """

    pp_stage: int
    tp_replicated: bool
    ranks: tuple[tuple[int, ...], ...]
    plan: Plan
    linears: tuple[tuple[Linear, ...], ...]
    tp_copies: int = 1
    transport_name: TransportName = "broadcast"

    @property
    def moves(self) -> bool:
        """Whether any weight moves: those of the `replicated` placement do not."""
        return any(series.moves for series in self.plan.series)

    @property
    def prefixes(self) -> tuple[tuple[str, ...], ...]:
        """The names of the linears."""
        return tuple(tuple(linear.prefix for linear in linears) for linears in self.linears)

    def as_processed(self, linears: Iterable[Sequence[Linear]]) -> GroupPlan:
        """The same plan with the bytes that these linears, its own, hold once processed."""
        processed = tuple(tuple(members) for members in linears)
        pairs = zip(self.plan.series, processed, strict=True)
        series = [as_processed(series_plan.series, members) for series_plan, members in pairs]
        return self._replace(plan=self.plan.with_series(series), linears=processed)


def layers_of(selected: Mapping[str, Sequence[Linear]]) -> dict[str, set[int]]:
    """The absolute layer indices at which each name matches: what pipeline stages exchange."""
    return {name: {linear.layer_id for linear in members} for name, members in selected.items()}


def require_layers(
    stages: Sequence[Mapping[str, set[int]]], linears: Sequence[Linear], layer_stride: int
) -> None:
    """Refuse names that shard nothing on any pipeline stage.

    `stages` has `layers_of` every stage, or of the whole model. `linears` are all that the error
    may propose.

    Raises:
        PlanError: a name matches no linear, or the stride leaves none of its layers.
    """
    for name in stages[0]:
        layer_ids = {layer_id for stage in stages for layer_id in stage[name]}
        if not layer_ids:
            raise no_match(name, linears)
        if not any(in_stride(layer_id, layer_stride) for layer_id in layer_ids):
            raise none_left(name, layer_stride)


def group_plans(
    selected: Mapping[str, Sequence[Linear]],
    config: LayerShardConfig,
    layout: ParallelLayout,
    pp_stage: int = 0,
) -> tuple[GroupPlan, ...]:
    """The plans of one pipeline stage: one for each kind of group that its linears ask for.

    `selected` are the stage's linears of each name. The planner and the plugin both call it.

    Raises:
        PlanError: a group of one rank, a prefetch_step too large for a series, or a linear that is
            to be cut at rows and cannot be.
    """
    grouped = series_of(
        selected, config.layer_stride, keep_first=config.keep_first, by_rows=config.cuts_rows
    )
    _require_long(grouped, config)
    return tuple(
        GroupPlan(
            pp_stage=pp_stage,
            tp_replicated=tp_replicated,
            ranks=tuple(
                ranks
                for ranks in layout.groups(tp_replicated, tp_copies)
                if layout.stage_of(ranks[0]) == pp_stage
            ),
            plan=build_plan(
                tuple(members),
                layout.group_size(tp_replicated, tp_copies),
                config.prefetch_step,
                config.placement,
                config.layer_stride,
            ),
            linears=tuple(members.values()),
            tp_copies=tp_copies,
            transport_name=layout.transport_of(layout.group_size(tp_replicated, tp_copies)),
        )
        for tp_replicated, tp_copies, members in by_group(grouped)
    )


def _require_long(grouped: Iterable[Series], config: LayerShardConfig) -> None:
    """Refuse a name of which every series is short for the step, and one is not for a lower one.

    Raises:
        PlanError: says which is the longest, and the step that it can have.
    """
    if config.placement == "replicated":
        return
    named: dict[str, list[Series]] = {}
    for series in grouped:
        named.setdefault(series.configured, []).append(series)
    for name, alike in named.items():
        longest = max(alike, key=len)
        most = len(longest) - 2
        if most < 1 or not all(series.is_short_for(config.prefetch_step) for series in alike):
            continue
        lower = "lower it" if config.layer_stride == 1 else "lower layer_stride, or it"
        without = "" if longest.kept_layer is None else ", do without keep_first"
        raise PlanError(
            f"series {longest.name!r} has {len(longest)} layers, and no other of {name!r} has "
            f"more; prefetch_step {config.prefetch_step} needs at least "
            f"{config.prefetch_step + 2}: {lower} to at most {most}{without} or leave {name!r} out"
        )
