"""How long one layer's weight takes from its owner to all other ranks, by a broadcast."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from math import exp, log

from vllm_layershard.estimate.figure import Basis
from vllm_layershard.estimate.hardware import BusTable, Hardware, TimeTable
from vllm_layershard.estimate.nodes import Spread
from vllm_layershard.estimate.wording import nics


def broadcast_seconds(nbytes: int, spread: Spread, hardware: Hardware) -> float:
    """Seconds for `nbytes` from one device of the group to all others.

    The best that is known, in this order: a table of broadcast times over as many ranks; the bus
    bandwidth of a table, T = S / B, which has its latency in it; the link's rate x its efficiency,
    as a ring, T = alpha + S / B, or over a full mesh (HCCL: scatter, then all-gather)
    T = 2 alpha + (2 / p) S / b_link, b_link the rate to one peer.

    On several nodes a ring enters each by the NICs of its ranks there, and is as slow as the slower
    of the two ways. Over meshes the nodes come first, and then each mesh.

    The caller has seen that `hardware.lacking(spread)` is empty. Other traffic is not counted.
    """
    if spread.ranks == 1 or nbytes == 0:
        return 0.0
    for table in hardware.broadcast:
        if hardware.timed_by(table, spread):
            return _seconds(table, nbytes)
    within = _within_a_node(nbytes, spread, hardware)
    if spread.domains == 1:
        return within
    between = _latency(spread.ranks, hardware) + nbytes / entry_rate(spread, hardware)
    return within + between if _over_mesh(hardware) else max(within, between)


def broadcast_basis(spread: Spread, hardware: Hardware) -> tuple[Basis, str]:
    """What stands behind the time of a broadcast, for the output."""
    for table in hardware.broadcast:
        if hardware.timed_by(table, spread):
            return table.basis, f"broadcast times over {spread.ranks} ranks from {table.source}"
    within = f"broadcast {_said_within(hardware)}"
    if spread.domains == 1:
        return "assumed", within
    share, rate = hardware.nic_efficiency.value, entry_rate(spread, hardware) / 1e9
    cards = nics(hardware.nics_of(spread))
    if hardware.nics is None:
        cards += " (assumed: one a device)"
    return "assumed", (
        f"broadcast over {spread.ranks} ranks on {spread.domains} nodes of "
        f"{hardware.node_size.value:.0f}: enters a node by {cards}, at "
        f"{share:g} of their rate {rate:,.0f} GB/s"
        + (f"; within a node {_said_within(hardware)}" if spread.in_a_domain > 1 else "")
    )


def entry_rate(spread: Spread, hardware: Hardware) -> float:
    """Bytes per second by which a broadcast of a group on several nodes enters each of them."""
    assert hardware.inter_node is not None, "lacking() names it"
    rate = hardware.inter_node.value * hardware.nic_efficiency.value
    return rate * hardware.nics_of(spread)


def _said_within(hardware: Hardware) -> str:
    share = hardware.link_efficiency.value
    if _over_mesh(hardware):
        return f"over a full mesh: scatter and all-gather at {share} of each peer's link"
    if not hardware.bus:
        return f"at {share} of the link within a node"
    return f"at the bus bandwidth of another collective ({hardware.bus[0].source})"


def _over_mesh(hardware: Hardware) -> bool:
    return hardware.topology == "mesh" and not hardware.bus


def _latency(ranks: int, hardware: Hardware) -> float:
    return hardware.latency.value + hardware.latency_per_rank.value * ranks


def _within_a_node(nbytes: int, spread: Spread, hardware: Hardware) -> float:
    """Seconds of the way within the fullest node; none if each has one rank."""
    ranks = spread.in_a_domain
    if ranks == 1:
        return 0.0
    latency = _latency(spread.ranks, hardware)
    if hardware.bus:
        measured = max(table.ranks for table in hardware.bus)
        further = hardware.latency_per_rank.value * max(0, spread.ranks - measured)
        return max(latency, nbytes / bus_bandwidth(hardware.bus, ranks, nbytes) + further)
    assert hardware.intra_node is not None, "lacking() names it"
    link = hardware.intra_node.value * hardware.link_efficiency.value
    if _over_mesh(hardware):
        to_one_peer = link / (hardware.node_size.value - 1)
        return 2 * _latency(ranks, hardware) + 2 / ranks * nbytes / to_one_peer
    return latency + nbytes / link


def bus_bandwidth(tables: tuple[BusTable, ...], ranks: int, nbytes: int) -> float:
    """Bus bandwidth among this many devices; there is a table.

    A single table serves any number, since a ring's bus bandwidth hardly depends on it; between
    tables it is interpolated in the logarithms of both (PCIe: it collapses with the number).
    """
    known = sorted((table.ranks, _bandwidth(table, nbytes)) for table in tables)
    if ranks <= known[0][0] or len(known) == 1:
        return known[0][1]
    for (few, fast), (many, slow) in pairwise(known):
        if ranks <= many:
            part = (log(ranks) - log(few)) / (log(many) - log(few))
            return exp(log(fast) + part * (log(slow) - log(fast)))
    return known[-1][1]


def _bandwidth(table: BusTable, nbytes: int) -> float:
    """Linear in the logarithm of the size between entries; the outermost ones beyond them."""
    at = bisect_right(table.sizes, nbytes)
    if at in (0, len(table.sizes)):
        return table.bandwidths[0 if at == 0 else -1]
    low, high = table.sizes[at - 1 : at + 1]
    slow, fast = table.bandwidths[at - 1 : at + 1]
    return slow + (log(nbytes) - log(low)) / (log(high) - log(low)) * (fast - slow)


def _seconds(table: TimeTable, nbytes: int) -> float:
    """Linear between entries; the smallest one's below them, the largest one's rate beyond."""
    at = bisect_right(table.sizes, nbytes)
    if at == 0:
        return table.seconds[0]
    if at == len(table.sizes):
        return table.seconds[-1] * nbytes / table.sizes[-1]
    low, high = table.sizes[at - 1 : at + 1]
    quick, slow = table.seconds[at - 1 : at + 1]
    return quick + (nbytes - low) / (high - low) * (slow - quick)
