"""Draft: a series whose layers are still being added, and how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from torch import nn

from vllm_layershard.config import LayerShardConfig, TransportName
from vllm_layershard.errors import PlanError
from vllm_layershard.plan import (
    Linear,
    Plan,
    Series,
    SeriesPlan,
    build_plan,
    series_of,
    shared_need,
)
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.formats import check_formats
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.peer_memory.room import Room, require_room
from vllm_layershard.runtime.ranks.agreement import agree, agree_on, on_all_ranks
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import describe, held
from vllm_layershard.runtime.transport import transport_of


@dataclass(slots=True)
class Draft:
    """The layers of one series by layer index, on one device."""

    name: str
    device: Device
    layers: dict[int, nn.Module] = field(default_factory=dict)

    def series(self, config: LayerShardConfig) -> Series:
        """The series that the layers make.

        Raises:
            PlanError: they are not alike, or are to be cut at rows and cannot be.
        """
        linears = [self._linear(layer_id) for layer_id in sorted(self.layers)]
        found = series_of({self.name: linears}, by_rows=config.cuts_rows)
        if len(found) > 1:
            kinds = ", ".join(f"layer {s.layer_ids[0]}: {s.layout}" for s in found)
            raise PlanError(
                f"series {self.name!r}: its layers are not alike ({kinds}); give each kind a "
                "series of its own"
            )
        (series,) = found
        return series

    def check(self) -> None:
        """Refuse tensors that are to move and are not plain rows.

        Raises:
            HostError: names the layer, the tensor and its format.
        """
        for layer_id, layer in self.layers.items():
            large = self._large(layer_id)
            moved = {
                name: tensor
                for name, tensor in held(layer).items()
                if isinstance(tensor, nn.Parameter) or name in large
            }
            check_formats(self.device, f"layer {layer_id} of series {self.name!r}", moved)

    def load(
        self,
        plan: SeriesPlan,
        group: RankGroup,
        config: LayerShardConfig,
        name: TransportName,
        *,
        verify: bool,
    ) -> ShardedSeries:
        """The series as it is served, by the transport of that name. Collective over `group`.

        No rank fails alone. Small tensors are copied from their owners to every rank, the large
        ones become slots.

        Raises:
            HostError: a rank has no memory that the others can read.
            TransportError: a rank died or hangs.
        """
        transport = on_all_ranks(
            partial(transport_of, plan, group, self.device, name, config.slice_bytes), group
        )
        loading = LoadingSeries(plan, group, self.device, transport, verify=verify)
        for position, layer_id in enumerate(plan.series.layer_ids):
            layer, large = self.layers[layer_id], self._large(layer_id)
            # What is cut in stripes must be there whole once.
            loading.receive(position, layer, leave=() if plan.is_striped else large)
            on_all_ranks(partial(loading.adopt, position, layer, large), group)
        return loading.finish(plan)

    def _linear(self, layer_id: int) -> Linear:
        return Linear(f"{self.name}.{layer_id}", layer_id, False, describe(self.layers[layer_id]))

    def _large(self, layer_id: int) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self._linear(layer_id).large)


def agreed_plan(
    drafts: Sequence[Draft], group: RankGroup, config: LayerShardConfig, *, verify: bool
) -> Plan:
    """The plan for the drafts of one sharding, each a series. Collective over `group`.

    All that the ranks were given is compared before a collective depends on it.

    Raises:
        MismatchError: the ranks have other options, another `verify` or other layers.
        PlanError: there is no draft, or they cannot be planned.
        HostError: see Draft.check.
        TransportError: a rank died or hangs.
    """
    agree_on("configuration", asdict(config) | {"verify": bool(verify)}, group)
    plan = on_all_ranks(partial(_plan_of, drafts, group, config), group)
    agree(plan, group)
    return plan


def require_room_for(
    plan: Plan, drafts: Sequence[Draft], group: RankGroup, config: LayerShardConfig
) -> None:
    """Return if this node has the memory that the ranks are going to share. Collective over them.

    Raises:
        NodeError: on every rank, before any has taken some.
        TransportError: a rank died or hangs.
    """
    on_cpu = all(draft.device.torch_device.type == "cpu" for draft in drafts)
    if on_cpu and config.transport_in(lockstep=True) == "pull":
        room = Room.found(group.ranks[group.group_rank], shared_need([(plan, group.group_rank)]))
        require_room([Room.told(document) for document in group.gather(room)])


def _plan_of(drafts: Sequence[Draft], group: RankGroup, config: LayerShardConfig) -> Plan:
    if not drafts:
        raise PlanError("layer sharding: finish was called and no series has a layer; call add")
    series = [draft.series(config) for draft in drafts]
    plan = build_plan(series, group.size, config.prefetch_step, config.placement)
    for draft, series_plan in zip(drafts, plan.series, strict=True):
        if series_plan.moves:
            draft.check()
    return plan
