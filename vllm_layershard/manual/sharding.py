"""LayerSharding: shares the weights of layers among ranks, for code that places its own calls.

    sharding = LayerSharding(prefetch_step=1)
    for i, linear in enumerate(linears):
        sharding.add(linear, layer_id=i)
    ...                       # load the weights
    sharding.finish()
    sharding.start(linear)    # ahead of the layer: starts movements
    sharding.wait(linear)     # just before linear(x): its weight is there

All ranks of the group make the same calls in the same order. What moves has process groups of its
own, so that the group's other collectives may run meanwhile. Weights of layers that a rank does
not own are released when the layer is added, so that loading them is a no-op there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch import nn

from vllm_layershard.config import Placement, TransportChoice
from vllm_layershard.errors import PlanError
from vllm_layershard.manual.arguments import check_layer, check_layer_id, check_series, config_of
from vllm_layershard.manual.claims import check_unclaimed, claim
from vllm_layershard.manual.draft import Draft, agreed_plan, require_room_for
from vllm_layershard.manual.in_place import check_in_place, check_no_gradient
from vllm_layershard.manual.lane import Lane
from vllm_layershard.manual.reach import agreed_transport
from vllm_layershard.plan.placement import round_robin_owner
from vllm_layershard.runtime.ops import Place
from vllm_layershard.runtime.ranks.group import RankGroup, group_over
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import held, release


class LayerSharding:
    """The sharded layers of one model: one or more series over the ranks of one group.

    `group` is a process group of torch.distributed (None: the world). The other options are those
    of the configuration, and hold for every series. `lane` makes the side stream and the process
    groups on which all series move; the default gives this object its own.

    Layers are referred to weakly once loaded: a model may hold its sharding, and both end together.

    Raises:
        ConfigError: a value is not valid.
    """

    def __init__(
        self,
        *,
        group: dist.ProcessGroup | None = None,
        prefetch_step: int = 1,
        placement: Placement = "round_robin",
        transport: TransportChoice = "auto",
        slice_bytes: int = 0,
        lane: Callable[[RankGroup], Lane] = Lane,
    ) -> None:
        self.config = config_of(
            prefetch_step=prefetch_step,
            placement=placement,
            transport=transport,
            slice_bytes=slice_bytes,
        )
        self.group = group_over(group)
        self._lane = lane(self.group)
        self._drafts: dict[str, Draft] = {}
        self._finished = False
        self._series: dict[str, ShardedSeries] = {}
        self._places: WeakKeyDictionary[nn.Module, Place] = WeakKeyDictionary()

    @property
    def series(self) -> Mapping[str, ShardedSeries]:
        """The loaded series by name: their counters and bytes. Empty before `finish`."""
        return MappingProxyType(self._series)

    def add(self, layer: nn.Module, *, layer_id: int, series: str = "linear") -> None:
        """Add a linear to the series of that name.

        `layer_id` is its absolute layer index; group rank `layer_id % size` loads it, and owns it
        unless it is striped. On every other rank the layer's parameters are released at once,
        unless they are replicated.

        Raises:
            PlanError: an argument is of another kind, loading has been finished, the layer or its
                index is registered already, or the layer holds no tensor or another layer's.
            HostError: the layer's device is none that weights can be moved on.
        """
        check_series(series)
        check_layer_id(layer_id, series)
        whose = f"series {series!r}: layer {layer_id}"
        check_layer(layer, whose)
        if self._finished:
            raise PlanError(f"{whose} comes after finish; add it before, or to another sharding")
        tensors = held(layer)
        if not tensors:
            raise PlanError(
                f"{whose} holds no tensor itself; register the module that holds the weight"
            )
        check_unclaimed(layer, whose)
        draft = self._drafts.get(series)
        if draft is None:
            draft = Draft(series, self._lane.device(next(iter(tensors.values())).device))
        if layer_id in draft.layers:
            raise PlanError(f"{whose} is registered already")
        claim(layer)
        self._drafts[series] = draft
        draft.layers[layer_id] = layer
        loader = round_robin_owner(layer_id, self.group.size)
        if self.config.placement != "replicated" and loader != self.group.group_rank:
            release(layer)

    def finish(self, *, verify: bool = False) -> Mapping[str, ShardedSeries]:
        """Load all series, once their owners have loaded their weights; see `series`. Collective.

        The ranks compare their options and plans first. Small parameters (scales, biases) are
        copied from their owners to every rank; the large ones become slots. `verify` compares every
        first arrival with what its owner has. What one rank cannot do is raised on all of them.

        Raises:
            PlanError: nothing was added, finish was called before, layers that are not alike, a
                group of one, or a prefetch_step that is too large.
            MismatchError: the ranks added different layers, or have other options.
            HostError: a weight is in a format of the device's own, or memory cannot be shared.
            TransportError: a rank died or hangs.
        """
        if self._finished:
            raise PlanError("layer sharding: finish was called already; make another LayerSharding")
        self._finished = True
        drafts, self._drafts = self._drafts, {}
        plan = agreed_plan([*drafts.values()], self.group, self.config, verify=verify)
        require_room_for(plan, [*drafts.values()], self.group, self.config)
        devices = {draft.device.torch_device for draft in drafts.values()}
        moved_by = agreed_transport(self.group, self.config, devices)
        private, every = self._lane.private, zip(drafts.values(), plan.series, strict=True)
        loaded = {
            draft.name: draft.load(series_plan, private, self.config, moved_by, verify=verify)
            for draft, series_plan in every
        }
        self._series.update(loaded)
        for name, draft in drafts.items():
            for position, layer_id in enumerate(loaded[name].plan.series.layer_ids):
                self._places[draft.layers[layer_id]] = Place(loaded[name], position)
        return self.series

    def start(self, layer: nn.Module) -> None:
        """Ahead of the layer, in forward order: start the movements that the plan puts here.

        Call it for every layer in every forward, on all ranks.

        Raises:
            PlanError: the layer belongs to no loaded series, or gradients are wanted of it.
            TransportError: a rank of the group is gone.
        """
        place = self._place_of(layer)
        check_no_gradient(layer, place.series, place.position)
        place.series.reach(place.position)

    def wait(self, layer: nn.Module) -> None:
        """Just before the layer's forward: return when its weight is there.

        Raises:
            PlanError: the layer is of no loaded series, was not started, or has other tensors now.
            TransportError: the weight did not arrive within the process group's timeout.
            MismatchError: with `verify`, it arrived for the first time and with other bytes.
        """
        place = self._place_of(layer)
        series, position = place.series, place.position
        if not series.has_started(position):
            raise PlanError(
                f"{series.plan.layer_name(position)} is waited for and was not started; start "
                "(reach, trigger) every layer of the series, in order, in every forward"
            )
        check_in_place(layer, series, position)
        series.wait(position)

    def _place_of(self, layer: nn.Module) -> Place:
        check_layer(layer, "layer sharding")
        place = self._places.get(layer)
        if place is None:
            raise PlanError(
                f"{type(layer).__name__} belongs to no loaded series of this sharding; add it, and "
                "call finish first"
            )
        return place
