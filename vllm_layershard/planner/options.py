"""Options: which linears are sharded and how, by the names of the configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, TypedDict

from vllm_layershard.config import LayerShardConfig, Placement, TransportChoice, short
from vllm_layershard.errors import ConfigError
from vllm_layershard.models import Deployment, Model
from vllm_layershard.plan import Linear
from vllm_layershard.plan.linear import short_names

DEFAULT_LAYERS: Final = ("o_proj", "q_b_proj", "attention.dense")

AUTO: Final = "auto"
"""Stands in the place of the names where the planner is to choose them."""


class Options(TypedDict, total=False):
    """What `LayerShardConfig` says of each key. A key that is left out takes its default there."""

    prefetch_step: int
    layer_stride: int
    keep_first: bool
    placement: Placement
    transport: TransportChoice
    slice_bytes: int


def config_with(names: Sequence[str], options: Options) -> LayerShardConfig:
    """The configuration of these linears with these options.

    Raises:
        ConfigError: a name or a value is not valid; names it, and the remedy.
    """
    return LayerShardConfig(layers=tuple(names), **options)


def names_of(listed: str | Sequence[str]) -> list[str]:
    """The names that are listed: one a string, or several with commas between them.

    Raises:
        ConfigError: something else is listed.
    """
    given: object = listed
    if isinstance(listed, str) or not isinstance(given, Collection):
        texts: Collection[Any] = [given]
    else:
        texts = given
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(f"{short(text)} is no name; write names as strings")
    return [name.strip() for text in texts for name in text.split(",")]


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


def config_for(
    model: Model, deployment: Deployment, layers: str | Sequence[str] | None, options: Options
) -> LayerShardConfig:
    """The configuration that is asked for; without `layers`, of the default linears.

    Raises:
        ConfigError: a name, a key or a value is not valid, or nothing can be chosen.
    """
    if layers is None:
        names = default_names(model.linears(deployment))
        if not names:
            raise ConfigError(
                f"{model.name} has none of {', '.join(DEFAULT_LAYERS)}: give --layers"
            )
        return config_with(names, options)
    names = names_of(layers)
    if AUTO in names:
        raise ConfigError(
            "--layers auto stands alone, and goes with `layershard plan` only; name the linears "
            "that it found"
        )
    return config_with(names, options)
