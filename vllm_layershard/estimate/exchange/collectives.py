"""How long collectives of activations take among tensor-parallel ranks: nothing hides them."""

from __future__ import annotations

from dataclasses import replace

from vllm_layershard.estimate.broadcast import bus_bandwidth, entry_rate
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import Spread


def all_gather_seconds(nbytes: float, spread: Spread, hardware: Hardware) -> float:
    """Seconds until every rank has all of `nbytes`, of which it has one part."""
    return _ring_seconds(nbytes, 1, spread, hardware)


def all_reduce_seconds(nbytes: float, spread: Spread, hardware: Hardware) -> float:
    """Seconds until every rank has the sum of all ranks' `nbytes`."""
    return _ring_seconds(nbytes, 2, spread, hardware)


def all_to_all_seconds(nbytes: float, spread: Spread, hardware: Hardware) -> float:
    """Seconds until each rank has given each other one its part of its own `nbytes`.

    What leaves a node does so by the NICs of its ranks; unlike a ring, that is most of it.
    """
    ranks = spread.ranks
    sent = (ranks - 1) / ranks * nbytes
    latency = latency_seconds(spread, hardware)
    inside = sent * (spread.in_a_domain - 1) / (ranks - 1)
    within = _within(inside, nbytes, latency, spread, hardware)
    if spread.domains == 1:
        return within
    outside = (ranks - spread.least_in_a_domain) / (ranks - 1) * sent
    own = entry_rate(spread, hardware) / spread.least_in_a_domain
    return max(within, latency + outside / own)


def rooted_seconds(nbytes: float, spread: Spread, hardware: Hardware) -> float:
    """Seconds until one rank has `nbytes` of every other rank, or has sent each of them so many.

    All of it passes that rank's own link, and what comes from other nodes its own NICs.
    """
    latency = latency_seconds(spread, hardware)
    near = spread.in_a_domain - 1
    within = 0.0
    if near and hardware.topology == "mesh" and not hardware.bus:
        within = latency + nbytes / _to_one_peer(hardware)
    elif near:
        within = _within(near * nbytes, near * nbytes, latency, spread, hardware)
    if spread.domains == 1:
        return within
    far = spread.ranks - spread.least_in_a_domain
    own = entry_rate(spread, hardware) / spread.least_in_a_domain
    return max(within, latency + far * nbytes / own)


def lacking(spread: Spread, hardware: Hardware) -> tuple[str, ...]:
    """The numbers that these times need and the hardware lacks; a broadcast's times are no help."""
    return replace(hardware, broadcast=()).lacking(spread)


def _ring_seconds(nbytes: float, rounds: int, spread: Spread, hardware: Hardware) -> float:
    """As a ring: it enters a node by all NICs of its ranks. Over a full mesh, all pairs at once."""
    sent = rounds * (spread.ranks - 1) / spread.ranks * nbytes
    latency = latency_seconds(spread, hardware)
    if hardware.topology == "mesh" and not hardware.bus:
        latency *= rounds
    within = _within(sent, nbytes, latency, spread, hardware)
    if spread.domains == 1:
        return within
    return max(within, latency + sent / entry_rate(spread, hardware))


def _within(
    sent: float, message: float, latency: float, spread: Spread, hardware: Hardware
) -> float:
    """Seconds of what a rank sends within its node, of a message of so many bytes."""
    ranks = spread.in_a_domain
    if ranks == 1:
        return 0.0
    if hardware.bus:  # a table's times have their latency in them
        return max(latency, sent / bus_bandwidth(hardware.bus, ranks, max(1, int(message))))
    assert hardware.intra_node is not None, "lacking() names it"
    if hardware.topology == "mesh":
        rate = _to_one_peer(hardware) * (ranks - 1)
    else:
        rate = hardware.intra_node.value * hardware.link_efficiency.value
    return latency + sent / rate


def _to_one_peer(hardware: Hardware) -> float:
    """Bytes per second to one peer of a full mesh."""
    assert hardware.intra_node is not None, "lacking() names it"
    link = hardware.intra_node.value * hardware.link_efficiency.value
    return link / (hardware.node_size.value - 1)


def latency_seconds(spread: Spread, hardware: Hardware) -> float:
    """The least that a collective takes, however few bytes it moves."""
    return hardware.latency.value + hardware.latency_per_rank.value * spread.ranks
