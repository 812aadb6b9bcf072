"""Request: what the flags ask for, with everything that had to be assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import ConfigError
from vllm_layershard.models import Deployment, FoundModel, Model, Sharding, model_of, plan_model
from vllm_layershard.plan import Linear, ParallelLayout
from vllm_layershard.plan.linear import short_names

DEFAULT_LAYERS = ("o_proj", "q_b_proj", "attention.dense")
NODE = 8
"""Data-parallel ranks that are assumed where no parallel flag is given."""


class LayoutFlags(NamedTuple):
    """The parallel flags as given; None where not."""

    tp: int | None
    dp: int | None
    pcp: int | None
    pp: int | None
    ep: bool | None


class Load(NamedTuple):
    """The flags on what a rank computes; None where not given."""

    tokens: int | None = None
    sequences: int | None = None
    context: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """What `forecast` takes."""
        given = {"tokens": self.tokens, "sequences": self.sequences, "context": self.context}
        return {key: value for key, value in given.items() if value is not None}


class Options(NamedTuple):
    """The flags on the sharding, by the names of the configuration; None where not given.

    They are as the user wrote them: `config` refuses what is not valid.
    """

    prefetch_step: int | None = None
    layer_stride: int | None = None
    placement: str | None = None
    transport: str | None = None
    slice_bytes: int | None = None
    keep_first: bool = False

    def config(self, names: Sequence[str]) -> LayerShardConfig:
        """The configuration of these linears; what was not given takes its default.

        Raises:
            ConfigError: a name or a flag's value is not valid.
        """
        given: dict[str, Any] = {
            key: value for key, value in self._asdict().items() if value is not None
        }
        return LayerShardConfig(layers=tuple(names), **given)


def deployment_of(flags: LayoutFlags, model: Model) -> tuple[Deployment, tuple[str, ...]]:
    """The deployment, and what was assumed for it: experts are parallel where there are some.

    Raises:
        PlanError: a size below one, or too many ranks.
    """
    if (flags.tp, flags.dp, flags.pcp, flags.pp, flags.ep) == (None,) * 5:
        experts = " with expert parallelism" if model.is_moe else ""
        note = (
            f"assumed one node of {NODE} data-parallel ranks{experts}; "
            "give --tp, --dp, --pcp, --pp or --ep to plan another layout"
        )
        return Deployment(ParallelLayout(dp=NODE), ep=model.is_moe), (note,)
    tp, dp, pcp, pp = (1 if n is None else n for n in (flags.tp, flags.dp, flags.pcp, flags.pp))
    return Deployment(ParallelLayout(tp=tp, dp=dp, pcp=pcp, pp=pp), ep=bool(flags.ep)), ()


def names_of(layers: Sequence[str] | None) -> list[str]:
    """What `--layers` lists."""
    return [name.strip() for given in layers or () for name in given.split(",")]


def default_names(linears: Sequence[Linear]) -> list[str]:
    """Those of DEFAULT_LAYERS that the model has; where a layer has two of a name, both."""
    names = []
    for default in DEFAULT_LAYERS:
        layers = [linear.layer_id for linear in linears if linear.is_named(default)]
        if len(layers) > len(set(layers)):
            names += [name for name in short_names(linears) if name.endswith(f".{default}")]
        elif layers:
            names.append(default)
    return names


def config_of(
    layers: Sequence[str] | None,
    model: Model,
    deployment: Deployment,
    options: Options,
) -> LayerShardConfig:
    """The sharding that the flags ask for.

    Raises:
        ConfigError: a flag's value is not valid, or `auto` where nothing can be chosen.
    """
    names = names_of(layers)
    if "auto" in names:
        raise ConfigError(
            "--layers auto stands alone, and goes with `layershard plan` only; name the linears "
            "that it found"
        )
    if not layers:
        names = default_names(model.linears(deployment))
        if not names:
            raise ConfigError(
                f"{model.name} has none of {', '.join(DEFAULT_LAYERS)}: give --layers"
            )
    return options.config(names)


def sharding_of(
    found: FoundModel, flags: LayoutFlags, layers: Sequence[str] | None, options: Options
) -> tuple[Sharding, tuple[str, ...]]:
    """Read and plan; returns the plan and what was assumed.

    Raises:
        ConfigError: a flag's value is not valid.
        ModelError: the model cannot be read.
        PlanError: the layout or the names do not fit the model.
    """
    model = model_of(found)
    deployment, assumed = deployment_of(flags, model)
    config = config_of(layers, model, deployment, options)
    return plan_model(model, deployment, config), (*assumed, *model.notes)
