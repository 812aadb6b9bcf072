"""A map as tables, for a person: which rank stores which layer."""

from __future__ import annotations

from layershard_cli.render.sheet import Column, Sheet
from layershard_cli.render.tables import print_heading
from layershard_cli.render.units import size
from vllm_layershard.models import GroupPlan, Sharding
from vllm_layershard.plan import EVERY_RANK, NO_RANK, SeriesPlan
from vllm_layershard.planner.results.map_result import MapResult


def print_map(result: MapResult) -> None:
    """`layershard map`."""
    sharding = result.planned
    sheet = Sheet()
    print_heading(sheet, sharding, result.evidence)
    for group in sharding.groups:
        _print_owners(sheet, sharding, group)
        _print_layers(sheet, group)
    for warning in result.warnings:
        sheet.note(warning)


def _print_owners(sheet: Sheet, sharding: Sharding, group: GroupPlan) -> None:
    """The layers of each rank."""
    title = f"Layers that each rank stores (pipeline stage {group.pp_stage})"
    names = [series_plan.series.name for series_plan in group.plan.series]
    rows = [
        [
            ", ".join(str(ranks[rank]) for ranks in group.ranks),
            *(_stored(plan, rank) for plan in group.plan.series),
        ]
        for rank in range(group.plan.group_size)
    ]
    sheet.table(title, [Column("global ranks"), *map(Column, names)], rows)


def _stored(plan: SeriesPlan, rank: int) -> str:
    if plan.is_striped:
        start, end = plan.stripes[rank]
        ahead = plan.series.kept_layer
        whole = "" if ahead is None else f"{ahead}, "
        return f"{whole}{size(end - start)} of each"
    stored = (i for i, owner in plan.owner_of_layer.items() if owner in (rank, EVERY_RANK))
    return " ".join(map(str, stored))


def _print_layers(sheet: Sheet, group: GroupPlan) -> None:
    """The owner of each layer."""
    title = f"Rank that stores each layer (pipeline stage {group.pp_stage})"
    owners = [plan.owner_of_layer for plan in group.plan.series]
    rows = [
        [str(layer_id), *(_owner(by_layer.get(layer_id), group) for by_layer in owners)]
        for layer_id in sorted({layer_id for by_layer in owners for layer_id in by_layer})
    ]
    names = [plan.series.name for plan in group.plan.series]
    sheet.table(title, [Column("layer", right=True), *map(Column, names)], rows)


def _owner(owner: int | None, group: GroupPlan) -> str:
    if owner is None:
        return "-"
    if owner == NO_RANK:
        return "all, in parts"
    if owner == EVERY_RANK:
        return "every rank"
    return ", ".join(str(ranks[owner]) for ranks in group.ranks)
