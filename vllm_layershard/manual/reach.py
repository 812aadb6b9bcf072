"""Whether two ranks are on GPUs that map each other's memory, so that `auto` pulls between them.

The plugin asks the driver before any worker starts (hosts/exclusions.py). Here each rank says where
it is and which GPUs it reaches, and both judge the same two answers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from vllm_layershard.config import LayerShardConfig, TransportName
from vllm_layershard.runtime.peer_memory.processes import address
from vllm_layershard.runtime.ranks.group import RankGroup


def agreed_transport(
    group: RankGroup, config: LayerShardConfig, devices: Collection[torch.device]
) -> TransportName:
    """How the weights on these devices move, by the plugin's rule. Collective over `group`.

    Raises:
        TransportError: a rank died or hangs.
    """
    usual = config.transport_in(lockstep=True)
    asks = config.transport_in(lockstep=True, paired_gpus=True) != usual
    if not asks or group.size != 2:
        return usual
    paired = reach_each_other(group.gather(whereabouts(devices)))
    return config.transport_in(lockstep=True, paired_gpus=paired)


def reach_each_other(told: Sequence[dict[str, Any] | None]) -> bool:
    """Whether each of the ranks maps the memory of every other, as both have told."""
    if any(each is None for each in told):
        return False
    known = [each for each in told if each is not None]
    return all(
        (one["host"], one["namespace"]) == (other["host"], other["namespace"])
        and other["device"] in one["reaches"]
        for one in known
        for other in known
    )


def whereabouts(devices: Collection[torch.device]) -> dict[str, Any] | None:
    """Where this rank is, its GPU, and the GPUs whose memory it maps; None where nobody can.

    They are on one GPU, and its memory is of torch's own allocator. A GPU that this process does
    not see counts as out of reach.
    """
    if len(devices) != 1 or {device.type for device in devices} != {"cuda"}:
        return None
    if torch.cuda.get_allocator_backend() != "native":
        return None
    (device,) = devices
    own = torch.cuda.current_device() if device.index is None else device.index
    here = address()
    return {
        "host": here["host"],
        "namespace": here["namespace"],
        "device": _uuid(own),
        "reaches": [
            _uuid(index)
            for index in range(torch.cuda.device_count())
            if index == own or torch.cuda.can_device_access_peer(own, index)
        ],
    }


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)
