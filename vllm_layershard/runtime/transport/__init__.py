"""How bytes move between ranks."""

from __future__ import annotations

from vllm_layershard.config import TransportName
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.peer_memory import exports_of
from vllm_layershard.runtime.ranks.group import Group, RankGroup
from vllm_layershard.runtime.transport.base import Ticket, Transport
from vllm_layershard.runtime.transport.broadcast import Broadcast
from vllm_layershard.runtime.transport.broken import Broken
from vllm_layershard.runtime.transport.pull import Pull
from vllm_layershard.runtime.transport.stay import Stay

__all__ = ["Broadcast", "Broken", "Pull", "Stay", "Ticket", "Transport", "transport_of"]


def transport_of(
    plan: SeriesPlan, group: Group, device: Device, name: TransportName, slice_bytes: int = 0
) -> Transport:
    """The transport of that name for one series; of a replicated one, the one that moves nothing.

    Raises:
        HostError: the device's memory cannot be pulled.
    """
    if not plan.moves:
        return Stay(name)
    if name == "pull":
        return Pull(group, device, exports_of(device, group, plan.series.name), slice_bytes)
    assert isinstance(group, RankGroup), "config: only ranks in lockstep broadcast"
    return Broadcast(group, device)
