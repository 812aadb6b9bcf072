"""Layout: the parallel sizes that a user asks for, or those that are assumed."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from vllm_layershard.config import short
from vllm_layershard.errors import ConfigError, PlanError
from vllm_layershard.estimate import Hardware
from vllm_layershard.estimate.transfer import gpus_reach
from vllm_layershard.models import Deployment, Model
from vllm_layershard.plan import ParallelLayout

NODE = 8
"""Data-parallel ranks that are assumed where no layout is given."""


class Layout(NamedTuple):
    """Tensor, data, prefill-context and pipeline parallelism, and expert parallelism or not."""

    tp: int = 1
    dp: int = 1
    pcp: int = 1
    pp: int = 1
    ep: bool = False


def deployment_of(
    layout: Layout | None, model: Model, ffn_tp: int | None = None
) -> tuple[Deployment, tuple[str, ...]]:
    """The deployment, and what was assumed for it: experts are parallel where there are some.

    `ffn_tp` data-parallel ranks split each dense MLP; None: none is split.

    Raises:
        ConfigError: it is no Layout, or `ffn_tp` no whole number of at least 1.
        PlanError: a size is no whole number or below one, or there are too many ranks.
    """
    if ffn_tp is not None:
        from vllm_layershard.ffn_config import FfnConfig  # seldom asked for

        deployment, assumed = deployment_of(layout, model)
        return replace(deployment, ffn=FfnConfig(ffn_tp).size), assumed
    if layout is None:
        experts = " with expert parallelism" if model.is_moe else ""
        note = (
            f"assumed one node of {NODE} data-parallel ranks{experts}; "
            "give --tp, --dp, --pcp, --pp or --ep to plan another layout"
        )
        return Deployment(ParallelLayout(dp=NODE), ep=model.is_moe), (note,)
    if not isinstance(layout, Layout):
        raise ConfigError(
            f"layout = {short(layout)}: is no Layout; write layout=Layout(dp=8, ep=True)"
        )
    tp, dp, pcp, pp, ep = layout
    for name, size in zip(Layout._fields, (tp, dp, pcp, pp), strict=False):
        if type(size) is not int:
            raise PlanError(f"{name} = {short(size)}: a parallel size is a whole number")
    if type(ep) is not bool:
        raise PlanError(f"ep = {short(ep)}: is no bool; give True or False")
    return Deployment(ParallelLayout(tp=tp, dp=dp, pcp=pcp, pp=pp), ep=ep), ()


def on_nodes_of(deployment: Deployment, device: Hardware | None) -> Deployment:
    """The deployment on such devices; None: nobody knows whether GPUs reach each other there."""
    ranks = deployment.layout.world_size
    return replace(deployment, gpus_reach=device is not None and gpus_reach(device, ranks))
