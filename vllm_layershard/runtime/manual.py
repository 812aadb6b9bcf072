"""The manual API: four calls for model code that places its own prefetch point.

    register_layer(linear, series="o_proj", layer_id=i, prefetch_step=1)   # each layer
    ...                                                                    # load the weights
    finish_loading("o_proj")                                               # once
    reach_layer(linear)    # ahead of the layer: starts movements
    wait_layer(linear)     # just before linear(x): its weight is there

All ranks of the group make the same calls in the same order; what moves has process groups of its
own, so that the group's other collectives may run meanwhile. Weights of layers that a rank does
not own are released at registration, so that loading them is a no-op there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple
from weakref import WeakValueDictionary, finalize

import torch
import torch.distributed as dist
from torch import nn

from vllm_layershard.config import LayerShardConfig, Placement, TransportChoice
from vllm_layershard.errors import PlanError
from vllm_layershard.plan import Linear, Plan, build_plan, series_of
from vllm_layershard.plan.placement import round_robin_owner
from vllm_layershard.runtime.device import Device, device_of
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ops import Place
from vllm_layershard.runtime.ranks.agreement import agree
from vllm_layershard.runtime.ranks.group import RankGroup, group_over, private_group
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import describe, held, release
from vllm_layershard.runtime.transport import transport_of
from vllm_layershard.schema import validated


@dataclass(slots=True)
class _Draft:
    """A series whose layers are still being registered."""

    group: RankGroup
    device: Device
    config: LayerShardConfig
    layers: dict[int, nn.Module] = field(default_factory=dict)

    def plan(self, name: str) -> Plan:
        linears = [
            Linear(f"{name}.{layer_id}", layer_id, False, describe(layer))
            for layer_id, layer in sorted(self.layers.items())
        ]
        series = series_of({name: linears})
        if len(series) > 1:
            kinds = ", ".join(f"layer {s.layer_ids[0]}: {s.layout}" for s in series)
            raise PlanError(
                f"series {name!r}: its layers are not alike ({kinds}); give each kind a series of "
                "its own"
            )
        config = self.config
        return build_plan(list(series), self.group.size, config.prefetch_step, config.placement)


_ANY_NAME = "linear"
"""A series of this API may have any name; what a configuration refuses does not bind it."""


class _Private(NamedTuple):
    """The process group that a caller gave, and what moves weights between its ranks."""

    parent: dist.ProcessGroup
    group: RankGroup


_drafts: dict[str, _Draft] = {}
_groups: dict[tuple[int, ...], _Private] = {}
_places: dict[int, Place] = {}
"""By the id of the layer, for as long as it lives: a weak dictionary takes longer to look it up."""
_registered: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()
"""The tensors that layers came with, by id. A released one lives on only if another has it, too."""


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
    """Add a linear to the series of that name.

    `layer_id` is its absolute layer index; rank `layer_id % size` of `group` (None: the world)
    loads it, and owns it unless it is striped. On every other rank the layer's parameters are
    released at once. The options are those of the configuration.

    Raises:
        ConfigError: a value is not valid.
        PlanError: the layer or its index is registered already, the layer holds no tensor or one of
            another layer's, or group or step differ from the series' first layer.
    """
    config = validated(
        {
            "layers": [_ANY_NAME],
            "prefetch_step": prefetch_step,
            "placement": placement,
            "transport": transport,
            "slice_bytes": slice_bytes,
        }
    )
    rank_group = group_over(group)
    tensors = held(layer)
    if not tensors:
        raise PlanError(
            f"series {series!r}: layer {layer_id} holds no tensor itself; register the module that "
            "holds the weight"
        )
    draft = _drafts.get(series)
    if draft is None:
        device = _device(next(iter(tensors.values())).device)
        draft = _drafts[series] = _Draft(rank_group, device, config)
    if (draft.group.ranks, draft.config) != (rank_group.ranks, config):
        raise PlanError(
            f"series {series!r}: layer {layer_id} comes with another group, prefetch_step or other "
            "option than the first; a series has one of each"
        )
    if layer_id in draft.layers or layer in draft.layers.values() or id(layer) in _places:
        raise PlanError(f"series {series!r}: layer {layer_id} is registered already")
    if any(_registered.get(id(tensor)) is tensor for tensor in tensors.values()):
        raise PlanError(
            f"series {series!r}: layer {layer_id} shares a tensor with a layer that is registered "
            "already, and both cannot own it; register neither"
        )
    _registered.update({id(tensor): tensor for tensor in tensors.values()})
    draft.layers[layer_id] = layer
    if round_robin_owner(layer_id, rank_group.size) != rank_group.group_rank:
        release(layer)


def finish_loading(series: str, *, verify: bool = False) -> ShardedSeries:
    """End the registration of a series, once its owners have loaded their weights. Collective.

    Small parameters (scales, biases) are copied from their owners to every rank; the large ones
    become slots. The name is free for another series afterwards.

    Raises:
        PlanError: no such series, layers that are not alike, a group of one, or a prefetch_step
            that is too large.
        MismatchError: the ranks registered different layers.
    """
    draft = _drafts.pop(series, None)
    if draft is None:
        raise PlanError(f"series {series!r}: no layer is registered; call register_layer first")
    plan = draft.plan(series)
    agree(plan, draft.group)
    (series_plan,) = plan.series
    group, config = _private(draft.group), draft.config
    transport_name = config.transport_in(lockstep=True)
    transport = transport_of(series_plan, group, draft.device, transport_name, config.slice_bytes)
    loading = LoadingSeries(series_plan, group, draft.device, transport, verify=verify)
    for position, layer_id in enumerate(series_plan.series.layer_ids):
        layer = draft.layers[layer_id]
        linear = Linear(series, layer_id, False, describe(layer))
        large = tuple(tensor.name for tensor in linear.large)
        # What is cut in stripes must be there whole once.
        loading.receive(position, layer, leave=() if series_plan.is_striped else large)
        loading.adopt(position, layer, large)
    sharded = loading.finish(series_plan)
    for position, layer_id in enumerate(series_plan.series.layer_ids):
        layer = draft.layers[layer_id]
        _places[id(layer)] = Place(sharded, position)
        finalize(layer, _places.pop, id(layer), None).atexit = False
    return sharded


def reach_layer(layer: nn.Module) -> None:
    """Ahead of the layer, in forward order: launch the movements that the plan puts here.

    Call it for every layer of the series in every forward, on all ranks.
    """
    place = _place_of(layer)
    place.series.reach(place.position)


def wait_layer(layer: nn.Module) -> None:
    """Just before the layer's forward: return when its weight is there."""
    place = _place_of(layer)
    place.series.wait(place.position)


@cache
def _device(torch_device: torch.device) -> Device:
    """One side stream for all series: what they move comes in one order on every rank."""
    return device_of(torch_device)


def _private(group: RankGroup) -> RankGroup:
    """The same ranks over process groups of their own, one for all series that have the same."""
    found = _groups.get(group.ranks)
    if found is None or found.parent is not group.data:
        found = _groups[group.ranks] = _Private(group.data, private_group(group))
    return found.group


def _place_of(layer: nn.Module) -> Place:
    place = _places.get(id(layer))
    if place is None:
        raise PlanError(
            f"{type(layer).__name__} belongs to no loaded series; call register_layer and "
            "finish_loading first"
        )
    return place
