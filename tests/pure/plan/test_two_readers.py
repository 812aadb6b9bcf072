"""The planner and the plugin come to one plan: the same linears, on both roads, give one digest.

The plugin's road is what hosts/model.py calls on one rank, with the linears of that rank's stage;
tests/vllm/ compares those linears with vLLM's own.
"""

from __future__ import annotations

import pytest

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.models import Deployment, Model, bundled_names, read_model, shard_model
from vllm_layershard.never_sharded import refusal_of
from vllm_layershard.plan import (
    GroupPlan,
    ParallelLayout,
    engines_that_share,
    group_plans,
    layers_of,
    require_layers,
    select,
    sharing_layout,
)
from vllm_layershard.plan.linear import short_names, suffix_of

LAYOUTS = [
    ({"dp": 8}, {}),
    ({"dp": 4, "tp": 2}, {"keep_first": True}),
    ({"dp": 2, "pp": 3}, {"placement": "striped", "layer_stride": 2}),
    ({"dp": 2, "tp": 2, "pcp": 2}, {"transport": "broadcast"}),
    ({"dp": 2, "tp": 2, "pp": 2}, {"transport": "pull", "layer_stride": 3}),
    ({"dp": 2, "tp": 2}, {}),
]
"""All of them are on GPUs that reach each other: two that share pull, and more broadcast."""


def names_of(model: Model, layer_stride: int) -> tuple[str, ...]:
    """The names of all linears that may be sharded under this stride."""
    linears = model.linears(Deployment(ParallelLayout()))
    reached = {suffix_of(x.prefix) for x in linears if x.layer_id % layer_stride == 0}
    allowed = {suffix for suffix in reached if refusal_of(suffix) is None}
    names = zip(
        dict.fromkeys(suffix_of(x.prefix) for x in linears), short_names(linears), strict=True
    )
    return tuple(name for suffix, name in names if suffix in allowed)


def stage_sizes(layers: int, stages: int) -> list[int]:
    """Written out apart from the plan: what remains goes to the stages before the last."""
    sizes = [layers // stages] * stages
    for stage in range(layers % stages):
        sizes[stages - 2 - stage] += 1
    return sizes


def layout_of_the_plugin(
    model: Model, sizes: dict[str, int], config: LayerShardConfig
) -> ParallelLayout:
    """What every rank decides from the sizes that vLLM tells it."""
    stated = {"tp": 1, "dp": 1, "pcp": 1, "pp": 1} | sizes
    return engines_that_share(
        sharing_layout(**stated, is_moe=model.is_moe, config=config, gpus_reach=True)
    )


def as_the_plugin(
    model: Model, layout: ParallelLayout, ep: bool, config: LayerShardConfig, rank: int
) -> tuple[GroupPlan, ...]:
    """What one rank decides from the linears of its stage."""
    if not layout.dp_shares:
        rank %= layout.world_size  # an engine is a world of its own
    stages, rest = [], list(model.linears(Deployment(layout, ep)))
    first = 0
    for size in stage_sizes(model.num_layers, layout.pp):
        stages.append([x for x in rest if first <= x.layer_id < first + size])
        first += size
    stage = rank // (layout.tp * layout.pcp) % layout.pp
    selected = [select(linears, config.layers) for linears in stages]
    require_layers([layers_of(each) for each in selected], stages[stage], config.layer_stride)
    assert stage == layout.stage_of(rank)
    return group_plans(selected[stage], config, layout, stage)


@pytest.mark.parametrize("name", bundled_names())
@pytest.mark.parametrize(("sizes", "options"), LAYOUTS)
def test_every_rank_decides_what_was_planned(name, sizes, options):
    model = read_model(name)
    names = names_of(model, options.get("layer_stride", 1))
    config = LayerShardConfig(names, prefetch_step=0, **options)
    layout = ParallelLayout(**sizes)
    planned = shard_model(model, Deployment(layout, ep=model.is_moe, gpus_reach=True), config)
    assert planned.groups
    decided_layout = layout_of_the_plugin(model, sizes, config)
    assert engines_that_share(planned.deployment.layout) == decided_layout
    engine = layout.world_size // layout.dp
    seen: set[tuple[int, ...]] = set()
    for rank in range(layout.world_size):
        mine = [
            (group, ranks) for group in planned.groups for ranks in group.ranks if rank in ranks
        ]
        decided = as_the_plugin(model, decided_layout, model.is_moe, config, rank)
        assert len(decided) == len(mine)
        for one, (other, ranks) in zip(decided, mine, strict=True):
            assert one.plan.digest() == other.plan.digest()
            assert one.transport_name == other.transport_name
            assert one.linears == other.linears
            assert (one.pp_stage, one.tp_replicated) == (other.pp_stage, other.tp_replicated)
            shares = planned.deployment.layout.dp_shares
            first = 0 if shares else rank // engine * engine
            assert tuple(r - first for r in ranks) in one.ranks
            seen.add(ranks)
    assert seen == {ranks for group in planned.groups for ranks in group.ranks}
