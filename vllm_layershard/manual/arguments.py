"""What a call was given, judged before it has any effect: layers, layer indices, names of series.

Code that is not typed calls the manual API, too.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vllm_layershard.config import short
from vllm_layershard.errors import PlanError


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
