"""Transfer: how the weights of one sharding move on one device, by broadcast or by pull.

Note [Both at once]
Groups of two GPUs may pull while larger ones broadcast. All weights move on one side stream, so one
movement is in flight at a time. What stands beside it is slowed by whatever takes more: products by
a broadcast, memory by the one or the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from vllm_layershard.config import KEY
from vllm_layershard.errors import PlanError
from vllm_layershard.estimate.broadcast import broadcast_basis, broadcast_seconds
from vllm_layershard.estimate.figure import Basis
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import ALONE, Spread, widest
from vllm_layershard.estimate.pull import pull_basis, pull_seconds, pull_traffic
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.models import GroupPlan, Sharding

_PCIE: Final = 64e9
"""Bytes per second one way of the fastest PCIe in a profile, 16 lanes of 5.0.

Source: PCI-SIG's 32 GT/s a lane. What is faster on a CUDA device is NVLink.
"""

_WEAKEST_FIRST: Final[tuple[Basis, ...]] = ("assumed", "formula", "measured", "exact")


class Transfer:
    """Times of one sharding's movements; where nothing moves, every group counts as one rank.

    Raises:
        PlanError: ranks that pull lie on several nodes.
    """

    def __init__(self, sharding: Sharding, hardware: Hardware) -> None:
        require_one_node(sharding, hardware)
        self._sharding = sharding
        self._hardware = hardware
        self._striped = sharding.config.placement == "striped"
        self.moves = bool(sharding.transport_names)
        self.pulls = sharding.transport_names == ("pull",)

    def spread(self, group: GroupPlan) -> Spread:
        """How the groups of a plan lie on nodes."""
        return spread_of(group, self._hardware) if self.moves else ALONE

    def seconds(self, nbytes: int, group: GroupPlan) -> float:
        """Seconds until `nbytes` of a layer have moved within a group; see the two formulas."""
        spread = self.spread(group)
        if group.transport_name != "pull":
            return broadcast_seconds(nbytes, spread, self._hardware)
        slice_bytes = self._sharding.config.slice_bytes
        return pull_seconds(
            nbytes, spread, self._hardware, striped=self._striped, slice_bytes=slice_bytes
        )

    @property
    def contention(self) -> tuple[float, float]:
        """By how much products slow down beside a movement, at least and at most."""
        return (0.0, 0.0) if self.pulls else self._hardware.contention

    def roofline(self, *, least: bool = False) -> Roofline:
        """The device's operations beside the fastest movement that this sharding has.

        See the note [Both at once].
        """
        pulling = [group for group in self._sharding.groups if group.transport_name == "pull"]
        sources = max(
            (pull_traffic(self.spread(group), striped=self._striped) for group in pulling),
            default=0,
        )
        traffic = sources * max(self._rates(pulling), default=0.0)
        if self.pulls:
            return Roofline(self._hardware, pull_traffic=traffic)
        rate = max(self._rates(self._broadcasting), default=0.0)
        alike = traffic / self._hardware.broadcast_traffic.value
        return Roofline(self._hardware, max(rate, alike), least=least)

    def lacking(self) -> tuple[str, ...]:
        """The numbers that an estimate needs and the hardware lacks."""
        kinds = sorted({(self.spread(g), g.transport_name) for g in self._sharding.groups})
        lacks = [lack for kind in kinds for lack in self._hardware.lacking(*kind)]
        return tuple(dict.fromkeys(lacks))

    def basis(self) -> Basis:
        """What stands behind the times: the weakest of all groups."""
        bases = {self._said(group)[0] for group in self._sharding.groups}
        return next((basis for basis in _WEAKEST_FIRST if basis in bases), "assumed")

    def assumptions(self) -> tuple[str, ...]:
        """Of each way: how long it takes, of the largest group, and what it does to the compute."""
        said = []
        for name in self._sharding.transport_names or ("broadcast",):
            groups = [g for g in self._sharding.groups if g.transport_name == name]
            largest = max(groups or self._sharding.groups, key=self.spread)
            said += [self._said(largest)[1], self._beside(largest)]
        if (
            "pull" in self._sharding.transport_names
            and not self._sharding.deployment.layout.one_sided
        ):
            said.append(
                f"two {self._hardware.name} of a node reach each other's memory over a link "
                "faster than PCIe, so that transport auto pulls between them (assumed)"
            )
        return tuple(said)

    @property
    def _broadcasting(self) -> list[GroupPlan]:
        return [group for group in self._sharding.groups if group.transport_name != "pull"]

    def _said(self, group: GroupPlan) -> tuple[Basis, str]:
        spread = self.spread(group)
        if group.transport_name == "pull":
            return pull_basis(spread, self._hardware, striped=self._striped)
        return broadcast_basis(spread, self._hardware)

    def _beside(self, group: GroupPlan) -> str:
        hardware, spread = self._hardware, self.spread(group)
        if group.transport_name == "pull":
            return (
                "a pull in flight takes copy engines and no cores, so that products keep their "
                f"pace (assumed), and {pull_traffic(spread, striped=self._striped)} bytes of "
                "memory traffic a byte (formula)"
            )
        memory, products = hardware.memory_slowdown, hardware.product_slowdown
        traffic = (
            f"memory traffic {memory.value:.0%} slower ({memory.basis})"
            if memory is not None
            else f"and takes {hardware.broadcast_traffic.value:g} bytes of memory traffic a byte "
            f"from it ({hardware.broadcast_traffic.basis})"
        )
        least, most = self.contention
        slower = f"{most:.0%}" if least == most else f"{least:.0%} to {most:.0%}"
        return f"a broadcast in flight makes products {slower} slower ({products.basis}), {traffic}"

    def _rates(self, groups: Iterable[GroupPlan]) -> Iterator[float]:
        """Bytes of a layer per second, of every series of these groups that moves."""
        for group in groups:
            for plan in group.plan.series:
                if any(plan.schedule.launches):
                    layer_bytes = plan.series.layer_bytes
                    yield layer_bytes / self.seconds(layer_bytes, group)


def gpus_reach(hardware: Hardware, ranks: int) -> bool:
    """Whether so many ranks are taken to be on GPUs of one node that map each other's memory.

    A server asks the driver for a fast link between all of them. CUDA devices whose link is faster
    than PCIe are taken to have it; a device without a stated link is not.
    """
    link = hardware.intra_node
    if hardware.compute_capability is None or link is None:
        return False
    return ranks <= hardware.devices_a_node and link.value > _PCIE


def require_one_node(sharding: Sharding, hardware: Hardware) -> None:
    """Refuse pulls of a deployment on several nodes: a rank maps memory of its own node only.

    Raises:
        PlanError: says which ranks, and what to do instead.
    """
    node = hardware.devices_a_node
    one_node = replace(hardware, node_size=hardware.node_size._replace(value=node))
    for group in sharding.groups if sharding.transport_names else ():
        if group.transport_name != "pull":
            continue
        spread = spread_of(group, one_node)
        if spread.domains > 1:
            raise PlanError(
                f"{KEY}: {spread.ranks} ranks that pull from each other lie on {spread.domains} "
                f"nodes of {node} {hardware.name}, and a rank reads the memory of its "
                f"own node only; {_instead(sharding, node)}"
            )
    ranks = sharding.deployment.layout.world_size
    if sharding.deployment.layout.pulls_over(several_nodes=ranks > node):
        raise PlanError(
            f"{KEY}: its {ranks} ranks lie on {-(-ranks // node)} nodes of {node} {hardware.name}, "
            "and a server whose ranks pull has all of them on one node, wherever those that share "
            f"are; {_instead(sharding, node)}"
        )


def _instead(sharding: Sharding, node_size: int) -> str:
    layout = sharding.deployment.layout
    if not layout.in_lockstep:
        if node_size < 2 * (layout.world_size // layout.dp):
            return "a node holds no two data-parallel replicas here: leave layer sharding out"
        return "launch a server on each node, with the data-parallel replicas that it holds"
    if sharding.config.placement == "striped":
        asked = " and transport 'broadcast'" if sharding.config.transport == "pull" else ""
        return f"use placement 'round_robin'{asked}, which ranks in lockstep broadcast"
    return "use transport 'broadcast', which these ranks can: they run in lockstep"


def spread_of(group: GroupPlan, hardware: Hardware) -> Spread:
    """How the groups of a plan lie on domains of this hardware."""
    return widest(group.ranks, int(hardware.node_size.value))
