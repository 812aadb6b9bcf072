"""Options: which linears are sharded and how, by the names of the configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final, TypedDict

from vllm_layershard.config import LayerShardConfig, Move, Placement, TransportChoice, short
from vllm_layershard.errors import ConfigError
from vllm_layershard.models import Deployment, Model
from vllm_layershard.planner.default_layers import default_names

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
    token_exchange: str | Sequence[str]
    move: Move
    move_weights_from: int


def config_with(names: Sequence[str], options: Options) -> LayerShardConfig:
    """The configuration of these linears with these options.

    Raises:
        ConfigError: a name or a value is not valid; names it, and the remedy.
    """
    said: dict[str, Any] = dict(options)
    if "token_exchange" in options:
        said["token_exchange"] = tuple(names_of(options["token_exchange"]))
    return LayerShardConfig(layers=tuple(names), **said)


def with_some_threshold(options: Options) -> tuple[Options, bool]:
    """The options, those of `move` auto with a threshold, and whether the planner is to find it.

    Where it is, any threshold stands for the one that `search/threshold.py` finds.
    """
    if options.get("move") != "auto" or "move_weights_from" in options:
        return options, False
    return options | Options(move_weights_from=1), True


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


def _exchanging(model: Model, deployment: Deployment, names: Sequence[str]) -> Deployment:
    """The deployment with these linears whole, of one engine where each shares within itself."""
    layout = deployment.layout
    if layout.tp == 1:  # refused by what plans it
        return deployment
    if not model.is_moe:
        layout = replace(layout, dp=1)
    return replace(deployment, layout=layout, exchange=tuple(names))


def config_for(
    model: Model, deployment: Deployment, layers: str | Sequence[str] | None, options: Options
) -> LayerShardConfig:
    """The configuration that is asked for; without `layers`, of the default linears.

    Raises:
        ConfigError: a name, a key or a value is not valid.
        PlanError: this layout cannot split the model.
    """
    if layers is None:
        if "token_exchange" in options:
            deployment = _exchanging(model, deployment, names_of(options["token_exchange"]))
        return config_with(default_names(model, deployment), options)
    names = names_of(layers)
    if AUTO in names:
        raise ConfigError(
            "--layers auto stands alone, and goes with `layershard plan` only; name the linears "
            "that it found"
        )
    return config_with(names, options)
