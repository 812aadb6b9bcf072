"""How long a rank takes to copy one layer's weight from its peers' memory into a slot.

Note [Sources]
With `round_robin` a layer lies on one rank, and its K - 1 peers copy it at once: the owner's
outgoing link carries (K - 1) S. With `striped` a rank copies S / K from each of K - 1 peers in
turn, every rank begins with another peer, and so each link carries (K - 1) / K S each way: a K-th.
DWDP (arXiv 2604.01621) is built on the same count. Copies follow one another on one stream, so
that over a full mesh a rank has one peer's link at a time.
"""

from __future__ import annotations

from math import ceil

from vllm_layershard.estimate.broadcast import bus_bandwidth
from vllm_layershard.estimate.figure import Basis
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import Spread


def pull_seconds(
    nbytes: int, spread: Spread, hardware: Hardware, *, striped: bool, slice_bytes: int = 0
) -> float:
    """Seconds until a rank of one node has all `nbytes` of a layer in its slot.

    The rates are those of the note [Sources]. Each source's bytes go in copies of `slice_bytes` (0:
    in one). A copy takes its bytes' time or its start's, whichever is longer: the next one is
    started meanwhile. A rank copies its own stripe too, within its memory: read and written. All
    ranks are taken to pull at the same time.

    The caller has seen that `hardware.lacking(spread, "pull")` is empty.
    """
    if spread.ranks == 1 or nbytes == 0:
        return 0.0
    assert spread.domains == 1, "a transfer refuses the others"
    start, peers = hardware.copy_launch.value, spread.ranks - 1

    def copied(part: float, rate: float) -> float:
        copies = ceil(part / slice_bytes) if slice_bytes else 1
        return copies * max(start, part / copies / rate)

    if not striped:
        return start + copied(nbytes, _rate(spread, hardware, readers=peers))
    assert hardware.memory_bandwidth is not None, "lacking() names it"
    stripe = nbytes / spread.ranks
    memory = hardware.memory_bandwidth.value * hardware.memory_efficiency.value
    gathered = peers * copied(stripe, _rate(spread, hardware, readers=1))
    return start + gathered + copied(stripe, memory / 2)


def pull_traffic(spread: Spread, *, striped: bool) -> int:
    """Bytes of memory traffic for each byte of a layer that a rank pulls.

    It writes them into its slot, while its peers read as many of what it stores: twice. With
    `round_robin` an owner is read by K - 1 peers at once.
    """
    return 2 if striped else max(2, spread.ranks - 1)


def pull_basis(spread: Spread, hardware: Hardware, *, striped: bool) -> tuple[Basis, str]:
    """What stands behind the time of a pull, for the output."""
    peers = spread.ranks - 1
    whence = (
        f"a stripe from each of {peers} peers in turn"
        if striped
        else f"whole layers from an owner that {peers} ranks read at once"
    )
    return "assumed", (
        f"pull of {whence}, at {hardware.link_efficiency.value:g} of the link within a node"
        + (" or what a ring reaches" if hardware.bus else "")
        + f", {hardware.copy_launch.value * 1e6:g} us a copy at least"
    )


def _rate(spread: Spread, hardware: Hardware, readers: int) -> float:
    """Bytes per second of one copy from a rank that so many read at once.

    No faster than a collective was measured among as many devices: over PCIe they share a root.
    """
    one_peer = hardware.to_one_peer
    assert hardware.intra_node is not None, "lacking() names it"
    assert one_peer is not None, "follows from intra_node"
    share = hardware.link_efficiency.value
    whole = hardware.intra_node.value * share
    if hardware.bus:
        largest = max(table.sizes[-1] for table in hardware.bus)
        whole = min(whole, bus_bandwidth(hardware.bus, spread.ranks, largest))
    return min(one_peer * share, whole / readers)
