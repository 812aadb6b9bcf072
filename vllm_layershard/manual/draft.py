"""Draft: a series whose layers are still being added, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import PlanError
from vllm_layershard.plan import Linear, Series, SeriesPlan, series_of
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.loading import LoadingSeries
from vllm_layershard.runtime.ranks.group import RankGroup
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import describe
from vllm_layershard.runtime.transport import transport_of


@dataclass(slots=True)
class Draft:
    """The layers of one series by layer index, on one device."""

    name: str
    device: Device
    layers: dict[int, nn.Module] = field(default_factory=dict)

    def series(self) -> Series:
        """The series that the layers make.

        Raises:
            PlanError: they are not alike.
        """
        found = series_of({self.name: [self._linear(layer_id) for layer_id in sorted(self.layers)]})
        if len(found) > 1:
            kinds = ", ".join(f"layer {s.layer_ids[0]}: {s.layout}" for s in found)
            raise PlanError(
                f"series {self.name!r}: its layers are not alike ({kinds}); give each kind a "
                "series of its own"
            )
        (series,) = found
        return series

    def load(
        self, plan: SeriesPlan, group: RankGroup, config: LayerShardConfig, *, verify: bool
    ) -> ShardedSeries:
        """The series as it is served. Collective over `group`.

        Small tensors are copied from their owners to every rank, the large ones become slots.

        Raises:
            HostError: a weight is in a format of the device's own, or memory cannot be shared.
            TransportError: a rank died or stalled.
        """
        name = config.transport_in(lockstep=True)
        transport = transport_of(plan, group, self.device, name, config.slice_bytes)
        loading = LoadingSeries(plan, group, self.device, transport, verify=verify)
        for position, layer_id in enumerate(plan.series.layer_ids):
            layer, large = self.layers[layer_id], self._large(layer_id)
            # What is cut in stripes must be there whole once.
            loading.receive(position, layer, leave=() if plan.is_striped else large)
            loading.adopt(position, layer, large)
        return loading.finish(plan)

    def _linear(self, layer_id: int) -> Linear:
        return Linear(f"{self.name}.{layer_id}", layer_id, False, describe(self.layers[layer_id]))

    def _large(self, layer_id: int) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self._linear(layer_id).large)
