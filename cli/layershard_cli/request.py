"""Request: what the flags ask for, with everything that had to be assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import ConfigError
from vllm_layershard.models import Deployment, Found, Model, Sharding, model_of, plan_model
from vllm_layershard.plan import ParallelLayout

DEFAULT_LAYERS = ("o_proj", "q_b_proj")
NODE = 8
"""Data-parallel ranks that are assumed where no parallel flag is given."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The parallel flags as given; None where not."""

    tp: int | None
    dp: int | None
    pcp: int | None
    pp: int | None
    ep: bool | None


def deployment_of(flags: Layout) -> tuple[Deployment, tuple[str, ...]]:
    """The deployment, and what was assumed for it.

    Raises:
        PlanError: a size below one, or too many ranks.
    """
    if (flags.tp, flags.dp, flags.pcp, flags.pp, flags.ep) == (None,) * 5:
        note = (
            f"assumed one node of {NODE} data-parallel ranks with expert parallelism; "
            "give --tp, --dp, --pcp, --pp or --ep to plan another layout"
        )
        return Deployment(ParallelLayout(dp=NODE), ep=True), (note,)
    tp, dp, pcp, pp = (1 if n is None else n for n in (flags.tp, flags.dp, flags.pcp, flags.pp))
    return Deployment(ParallelLayout(tp=tp, dp=dp, pcp=pcp, pp=pp), ep=bool(flags.ep)), ()


def config_of(
    layers: Sequence[str] | None,
    model: Model,
    deployment: Deployment,
    options: dict[str, Any],
) -> LayerShardConfig:
    """The sharding that the flags ask for; options that are None take the default.

    Raises:
        ConfigError: a flag's value is not valid.
    """
    names = [name.strip() for given in layers or () for name in given.split(",")]
    if not layers:
        linears = model.linears(deployment)
        names = [name for name in DEFAULT_LAYERS if any(x.is_named(name) for x in linears)]
        if not names:
            raise ConfigError(
                f"{model.name} has none of {', '.join(DEFAULT_LAYERS)}: give --layers"
            )
    given = {key: value for key, value in options.items() if value is not None}
    return LayerShardConfig.parse({"layers": names, **given})


def sharding_of(
    found: Found,
    flags: Layout,
    layers: Sequence[str] | None,
    options: dict[str, Any],
) -> tuple[Sharding, tuple[str, ...]]:
    """Read and plan; returns the plan and what was assumed."""
    deployment, assumed = deployment_of(flags)
    model = model_of(found)
    config = config_of(layers, model, deployment, options)
    return plan_model(model, deployment, config), (*assumed, *model.notes)
