"""Broadcast: how long one layer's weight takes from its owner to all other ranks."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from math import log
from typing import Final

from vllm_layershard.estimate.hardware import Basis, BusTable, Hardware

LINK_EFFICIENCY: Final = 0.7
"""Share of a link's rate that a collective reaches where no table says more; assumed, as
Ascend/msmodeling does."""

_LATENCY_SECONDS: Final = 8.4e-6
"""Of a ring at its start. Source: NCCL tuning.cc."""
_LATENCY_PER_RANK_SECONDS: Final = 3e-6
"""Assumed; NCCL's own constants are a few microseconds a rank."""


def broadcast_seconds(nbytes: int, ranks: int, hardware: Hardware) -> float:
    """Seconds for `nbytes` over a ring of `ranks` devices: T = alpha + bytes / bandwidth.

    The bandwidth is the table's bus bandwidth, or else the link's rate x LINK_EFFICIENCY. Beyond
    a node's size the link between nodes bounds it. Other traffic on the link is not counted.
    """
    if ranks == 1 or nbytes == 0:
        return 0.0
    alpha = _LATENCY_SECONDS + _LATENCY_PER_RANK_SECONDS * ranks
    bandwidth = hardware.intra_node.value * LINK_EFFICIENCY
    if hardware.bus is not None:
        bandwidth = _interpolated(hardware.bus, nbytes)
    if ranks > hardware.node_size:
        bandwidth = min(bandwidth, hardware.inter_node.value * LINK_EFFICIENCY)
    return alpha + nbytes / bandwidth


def broadcast_basis(ranks: int, hardware: Hardware) -> tuple[Basis, str]:
    """What stands behind the time of a broadcast, for the output."""
    if ranks > hardware.node_size:
        return "assumed", (
            f"broadcast over {ranks} ranks, {hardware.node_size} a node: "
            f"{LINK_EFFICIENCY} of the link between nodes"
        )
    if hardware.bus is None:
        return "assumed", f"broadcast at {LINK_EFFICIENCY} of the link within a node"
    return (
        "assumed",
        f"broadcast at the bus bandwidth of another collective ({hardware.bus.source})",
    )


def _interpolated(table: BusTable, nbytes: int) -> float:
    """Linear in the logarithm of the size between entries; the outermost ones beyond them."""
    at = bisect_right(table.sizes, nbytes)
    if at in (0, len(table.sizes)):
        return table.bandwidths[0 if at == 0 else -1]
    (low, high) = list(pairwise(table.sizes))[at - 1]
    (slow, fast) = list(pairwise(table.bandwidths))[at - 1]
    share = (log(nbytes) - log(low)) / (log(high) - log(low))
    return slow + share * (fast - slow)
