"""What a call was given, judged before it has any effect: layers, indices, names, options.

Code that is not typed calls the manual API, too.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn

from vllm_layershard.config import LayerShardConfig, short
from vllm_layershard.errors import ConfigError, PlanError

_ANY_NAME = "linear"
"""A series of this API may have any name; what a configuration refuses does not bind it."""


def config_of(**options: Any) -> LayerShardConfig:
    """The configuration with these options.

    Good ones need no pydantic. Bad ones are told in the words that the key has, where it is there.

    Raises:
        ConfigError: a value is not valid.
    """
    try:
        return LayerShardConfig(layers=(_ANY_NAME,), **options)
    except ConfigError:
        with suppress(ImportError):
            from vllm_layershard.schema import validated

            return validated({"layers": [_ANY_NAME], **options})
        raise


def check_layer(layer: Any, whose: str) -> None:
    """Return if `layer` is a module. `whose` begins the message.

    Raises:
        PlanError: it is none.
    """
    if not isinstance(layer, nn.Module):
        raise PlanError(
            f"{whose}: {type(layer).__name__} is no layer; pass the nn.Module that holds the weight"
        )


def check_layer_id(layer_id: Any, series: str) -> None:
    """Return if `layer_id` can be an absolute layer index.

    Raises:
        PlanError: it is no whole number, or negative.
    """
    if not isinstance(layer_id, int) or isinstance(layer_id, bool) or layer_id < 0:
        raise PlanError(
            f"series {series!r}: layer_id {short(layer_id)} is no layer index; pass a whole "
            "number, 0 or more"
        )


def check_series(series: Any) -> None:
    """Return if `series` can be the name of a series.

    Raises:
        PlanError: it is no text.
    """
    if not isinstance(series, str):
        raise PlanError(f"series {short(series)}: a series is named by text; pass a str")
