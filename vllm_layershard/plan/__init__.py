"""All that is decided, in pure Python: owners, slots, starts and bytes."""

from vllm_layershard.plan.groups import GroupPlan, group_plans, layers_of, require_layers
from vllm_layershard.plan.layout import ParallelLayout, stage_layers
from vllm_layershard.plan.linear import Linear, TensorSpec, inventory, no_match, none_left, select
from vllm_layershard.plan.placement import EVERY_RANK, NO_RANK
from vllm_layershard.plan.plan import Plan, SeriesPlan, build_plan, differences
from vllm_layershard.plan.rows import Stripe
from vllm_layershard.plan.series import Series, as_processed, by_group, in_stride, series_of
from vllm_layershard.plan.shared_need import SharedNeed, shared_need
from vllm_layershard.plan.sharing import engines_that_share, sharing_layout

__all__ = [
    "EVERY_RANK",
    "NO_RANK",
    "GroupPlan",
    "Linear",
    "ParallelLayout",
    "Plan",
    "Series",
    "SeriesPlan",
    "SharedNeed",
    "Stripe",
    "TensorSpec",
    "as_processed",
    "build_plan",
    "by_group",
    "differences",
    "engines_that_share",
    "group_plans",
    "in_stride",
    "inventory",
    "layers_of",
    "no_match",
    "none_left",
    "require_layers",
    "select",
    "series_of",
    "shared_need",
    "sharing_layout",
    "stage_layers",
]
