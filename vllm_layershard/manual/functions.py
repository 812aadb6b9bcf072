"""Four functions over LayerSharding, for code that passes no object around.

    register_layer(linear, series="o_proj", layer_id=i, prefetch_step=1)   # each layer
    ...                                                                    # load the weights
    finish_loading("o_proj")                                               # once
    reach_layer(linear)    # ahead of the layer: starts movements
    wait_layer(linear)     # just before linear(x): its weight is there

Each series is a sharding of its own. All of them move on one side stream, and those over the same
ranks share their process groups.
"""

from __future__ import annotations

from functools import cache
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn

from vllm_layershard.config import Placement, TransportChoice
from vllm_layershard.errors import PlanError
from vllm_layershard.manual.arguments import check_layer, check_series
from vllm_layershard.manual.lane import Lane
from vllm_layershard.manual.sharding import LayerSharding
from vllm_layershard.runtime.device import Device, device_of
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries

_unfinished: dict[str, LayerSharding] = {}
_shardings: WeakKeyDictionary[nn.Module, LayerSharding] = WeakKeyDictionary()
_lanes: dict[tuple[int, ...], Lane] = {}


def register_layer(
    layer: nn.Module,
    *,
    series: str,
    layer_id: int,
    group: dist.ProcessGroup | None = None,
    prefetch_step: int = 1,
    placement: Placement = "round_robin",
    transport: TransportChoice = "auto",
    slice_bytes: int = 0,
) -> None:
    """Add a linear to the series of that name: see LayerSharding.add.

    Raises:
        ConfigError: a value is not valid.
        PlanError: group or options differ from those of the series' first layer, or the layer
            cannot be added.
    """
    check_series(series)
    asked = LayerSharding(
        group=group,
        prefetch_step=prefetch_step,
        placement=placement,
        transport=transport,
        slice_bytes=slice_bytes,
        lane=_lane,
    )
    sharding = _unfinished.get(series, asked)
    if (sharding.group.ranks, sharding.config) != (asked.group.ranks, asked.config):
        raise PlanError(
            f"series {series!r}: layer {layer_id} comes with another group, prefetch_step or other "
            "option than the first; a series has one of each"
        )
    sharding.add(layer, layer_id=layer_id, series=series)
    _unfinished[series] = _shardings[layer] = sharding


def finish_loading(series: str, *, verify: bool = False) -> ShardedSeries:
    """End the registration of a series: see LayerSharding.finish. Collective.

    The name is free for another series afterwards.

    Raises:
        PlanError: no such series, or it cannot be planned.
        MismatchError: the ranks registered different layers, or have other options.
    """
    check_series(series)
    sharding = _unfinished.pop(series, None)
    if sharding is None:
        raise PlanError(f"series {series!r}: no layer is registered; call register_layer first")
    return sharding.finish(verify=verify)[series]


def reach_layer(layer: nn.Module) -> None:
    """Ahead of the layer, in forward order, in every forward: see LayerSharding.start."""
    _sharding_of(layer).start(layer)


def wait_layer(layer: nn.Module) -> None:
    """Just before the layer's forward: see LayerSharding.wait."""
    _sharding_of(layer).wait(layer)


def _sharding_of(layer: nn.Module) -> LayerSharding:
    check_layer(layer, "layer sharding")
    sharding = _shardings.get(layer)
    if sharding is None:
        raise PlanError(
            f"{type(layer).__name__} belongs to no loaded series; call register_layer and "
            "finish_loading first"
        )
    return sharding


@cache
def _device(torch_device: torch.device) -> Device:
    """One side stream for all series: what they move comes in one order on every rank."""
    return device_of(torch_device)


def _lane(group: RankGroup) -> Lane:
    """One lane for all series over the same ranks, for as long as their process group lives."""
    lane = _lanes.get(group.ranks)
    if lane is None or lane.group.data is not group.data:
        lane = _lanes[group.ranks] = Lane(group, _device)
    return lane
