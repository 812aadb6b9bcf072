"""Which ranks share their layers, and how weights move between them."""

from __future__ import annotations

from dataclasses import replace

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.plan.layout import ParallelLayout, run_in_lockstep


def sharing_layout(
    *,
    tp: int,
    dp: int,
    pcp: int,
    pp: int,
    is_moe: bool,
    config: LayerShardConfig,
    dcp: int = 1,
    gpus_reach: bool = False,
) -> ParallelLayout:
    """The layout of a deployment of these sizes, with its lockstep and its movement decided.

    The planner and the plugin both call it: they read the sizes, and decide nothing. `gpus_reach`
    says that all ranks are on GPUs of one node that map each other's memory. The replicas of a
    dense model that exchanges tokens share each within itself: its tensor-parallel ranks hold
    the same whole linears, and run every forward together.

    Raises:
        PlanError: a size is below 1.
    """
    together = run_in_lockstep(dp, dp_lockstep=is_moe)
    apart = not together and exchanges(config, tp)
    layout = ParallelLayout(
        tp=tp, dp=dp, pcp=pcp, pp=pp, dp_lockstep=is_moe, engines_apart=apart, dcp=dcp
    )
    usual = config.transport_in(lockstep=together or apart)
    paired = config.transport_in(lockstep=together or apart, paired_gpus=gpus_reach)
    return replace(layout, one_sided=usual == "pull", pairs_pull=paired != usual)


def exchanges(config: LayerShardConfig, tp: int) -> bool:
    """Whether tokens are exchanged at all: one tensor-parallel rank has nobody to do so with."""
    return tp > 1 and bool(config.token_exchange)


def engines_that_share(layout: ParallelLayout) -> ParallelLayout:
    """The layout of the engines that share with each other: of one engine where none does."""
    return layout if layout.dp_shares else replace(layout, dp=1)
