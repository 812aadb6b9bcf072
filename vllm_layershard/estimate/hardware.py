"""Hardware: what the estimate needs to know of a device, each number with its source."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from vllm_layershard.config import TransportName
from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate.figure import (
    LABELS,
    MAY_BE_NULL,
    Basis,
    Figure,
    shown,
    wrong_with,
)
from vllm_layershard.estimate.nodes import Spread

Topology = Literal["ring", "mesh"]
"""How a broadcast goes within a node where no table says its time."""

LowBitFormat = Literal["fp8", "int8"]
"""The eight-bit format that a device computes in."""


class BusTable(NamedTuple):
    """Bus bandwidth among `ranks` devices over message sizes: bytes ascending, bytes per second."""

    ranks: int
    sizes: tuple[int, ...]
    bandwidths: tuple[float, ...]
    basis: Basis
    source: str


class TimeTable(NamedTuple):
    """Seconds of one whole broadcast among `ranks` devices over message sizes: bytes ascending."""

    ranks: int
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    basis: Basis
    source: str


_MSM_SHARE = "Ascend/msmodeling's defaults"

_NIC_SHARE = "46 to 48 GB/s of a NIC of 50, the least: NVIDIA/nccl-tests issue 290"

_NCCL_LATENCY = "NCCL, tuning.cc, has a few microseconds a rank"

_NONE_FOUND = "no measurement found; not counted"


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device. Rates are dense peaks in FLOP/s, bandwidths bytes per second one way.

    None: nobody says; an estimate that needs it abstains. `low_bit` is the fp8 rate, or the int8
    one where there is no fp8; None: such weights are computed at the `bf16` rate. `memory_bytes` is
    what a process can allocate: torch's total, which is less than the vendor states.
    `compute_capability` is CUDA's, as 10.3; None: the device has none.

    `node_size` devices share `intra_node`, further ones `inter_node`, the rate of one NIC;
    `host_size` of them one node (None: all), which has `nics` NICs (None: one a device), and
    `peer_link` is what one peer gets of `intra_node` (None: see `to_one_peer`).

    `base` is the bundled profile that a profile of one's own builds on, empty where there is none:
    what vLLM reads in a device's name is read in that one.

    The efficiencies are the shares of the peaks that are reached. The tables have their latency in
    them; `latency` and `latency_per_rank` are those of a broadcast without one.

    While a broadcast is in flight, products take `product_slowdown` longer at most, and
    `product_slowdown_least` at least (as much, where the former is measured); memory traffic takes
    `memory_slowdown` longer (None: as long as it takes when the broadcast moves `broadcast_traffic`
    bytes of memory for each of its own), and the broadcast itself `broadcast_slowdown` longer
    beside compute. A copy of a pull takes `copy_launch` at least.

    Raises:
        HardwareError: a number cannot be; names it.
    """

    name: str
    memory_bytes: Figure | None = None
    memory_bandwidth: Figure | None = None
    bf16: Figure | None = None
    low_bit: Figure | None = None
    intra_node: Figure | None = None
    inter_node: Figure | None = None
    peer_link: Figure | None = None
    compute_capability: Figure | None = None
    node_size: Figure = Figure(8, "assumed", "eight devices a node")
    host_size: Figure | None = None
    nics: Figure | None = None
    compute_efficiency: Figure = Figure(0.7, "assumed", _MSM_SHARE)
    memory_efficiency: Figure = Figure(0.6, "assumed", _MSM_SHARE)
    link_efficiency: Figure = Figure(0.7, "assumed", _MSM_SHARE)
    nic_efficiency: Figure = Figure(0.92, "measured", _NIC_SHARE)
    latency: Figure = Figure(8.4e-6, "assumed", "NCCL, tuning.cc: the base of a ring")
    latency_per_rank: Figure = Figure(3e-6, "assumed", _NCCL_LATENCY)
    product_slowdown: Figure = Figure(
        0.35, "assumed", "matmuls beside NCCL measured 30-40 % slower, pytorch/pytorch issue 179937"
    )
    product_slowdown_least: Figure = Figure(
        0.15, "assumed", "the cores that it takes: 20 of 132, as DeepSeek-V3's, arXiv 2412.19437"
    )
    memory_slowdown: Figure | None = None
    broadcast_traffic: Figure = Figure(
        2,
        "formula",
        "a rank writes what it receives and reads it to pass it on: at least twice, "
        "NVIDIA/nccl issue 1428",
    )
    broadcast_slowdown: Figure = Figure(0, "assumed", _NONE_FOUND)
    copy_launch: Figure = Figure(
        6e-6, "assumed", "one cudaMemcpyAsync measured at 5 to 7 us, arXiv 2602.21548, section 5.2"
    )
    topology: Topology = "ring"
    low_bit_format: LowBitFormat = "fp8"
    bus: tuple[BusTable, ...] = ()
    broadcast: tuple[TimeTable, ...] = ()
    base: str = ""

    def __post_init__(self) -> None:
        for key, figure in self.figures.items():
            if figure is None and key in MAY_BE_NULL:
                continue
            wrong: str | None = f"{shown(figure)} is no Figure"
            if isinstance(figure, Figure) and figure.basis in get_args(Basis):
                wrong = wrong_with(key, figure.value)
            if wrong is not None:
                raise HardwareError(f"Hardware {self.name}: {key}: {wrong}")
        for key, value, choices in (
            ("topology", self.topology, get_args(Topology)),
            ("low_bit_format", self.low_bit_format, get_args(LowBitFormat)),
        ):
            if value not in choices:
                raise HardwareError(
                    f"Hardware {self.name}: {key}: {shown(value)} is not {' or '.join(choices)}"
                )
        for table in (*self.bus, *self.broadcast):
            if not _is_table(*table[:3]):
                raise HardwareError(f"Hardware {self.name}: {shown(table)} is no table")

    @property
    def contention(self) -> tuple[float, float]:
        """By how much products slow down beside a broadcast, at least and at most."""
        most = self.product_slowdown
        least = most if most.basis == "measured" else self.product_slowdown_least
        return min(least.value, most.value), most.value

    @property
    def figures(self) -> dict[str, Figure | None]:
        """Every number that stands alone, by its field."""
        return {key: getattr(self, key) for key in LABELS}

    @property
    def sources(self) -> tuple[str, ...]:
        """Each number with its basis and source, a line each."""
        lines = [
            f"{LABELS[key]}: {figure.basis}, {figure.source}"
            for key, figure in self.figures.items()
            if figure is not None
        ]
        lines += [f"bus bandwidth, {t.ranks} ranks: {t.basis}, {t.source}" for t in self.bus]
        lines += [f"broadcast, {t.ranks} ranks: {t.basis}, {t.source}" for t in self.broadcast]
        return tuple(lines)

    def timed_by(self, table: TimeTable, spread: Spread) -> bool:
        """Whether a table of broadcast times says that of a group: one of a node not of several."""
        alike = spread.domains == 1 or table.ranks > self.node_size.value
        return table.ranks == spread.ranks and alike

    def nics_of(self, spread: Spread) -> float:
        """NICs by which a broadcast of a group enters a node: those of its ranks there.

        All groups of a deployment move their layers at the same time, and share a node's NICs.
        """
        if self.nics is None:
            return spread.least_in_a_domain
        return self.nics.value / self.devices_a_node * spread.least_in_a_domain

    @property
    def devices_a_node(self) -> int:
        """Devices of one node, which has one operating system."""
        domain = self.node_size
        return int(min(self.host_size or domain, domain, key=lambda size: size.value).value)

    @property
    def to_one_peer(self) -> float | None:
        """Bytes per second of `intra_node` that one peer gets: over a full mesh, its own link's."""
        if self.peer_link is not None or self.intra_node is None:
            return None if self.peer_link is None else self.peer_link.value
        peers = self.node_size.value - 1 if self.topology == "mesh" else 1
        return self.intra_node.value / peers

    def lacking(
        self, spread: Spread, transport_name: TransportName = "broadcast"
    ) -> tuple[str, ...]:
        """The numbers that an estimate for groups that lie so needs and nobody gives.

        One rank: nothing moves.
        """
        return _lacking(self, spread, transport_name)


def _is_table(ranks: int, sizes: tuple[int, ...], values: tuple[float, ...]) -> bool:
    """Whether sizes ascend from above 0, each with a value above 0, for two ranks or more."""
    ascend = all(a < b for a, b in pairwise(sizes))
    return (
        ranks > 1
        and 0 < len(sizes) == len(values)
        and ascend
        and all(v > 0 for v in (*sizes, *values))
    )


def _lacking(hardware: Hardware, spread: Spread, transport_name: TransportName) -> tuple[str, ...]:
    lacks = [LABELS[key] for key in ("memory_bandwidth", "bf16") if getattr(hardware, key) is None]
    ranks, within = spread.ranks, spread.in_a_domain
    if transport_name == "pull" and ranks > 1:
        return (*lacks, *([LABELS["intra_node"]] if hardware.intra_node is None else []))
    if ranks == 1 or any(hardware.timed_by(table, spread) for table in hardware.broadcast):
        return tuple(lacks)
    if spread.domains > 1 and hardware.inter_node is None:
        lacks.append(
            f"{LABELS['inter_node']} ({ranks} ranks on {spread.domains} nodes of "
            f"{hardware.node_size.value:.0f})"
        )
    measured = [table.ranks for table in hardware.bus]
    if len(measured) > 1 and within > max(measured):
        lacks.append(f"bus bandwidth among {within} devices (measured up to {max(measured)})")
    elif within > 1 and not measured and hardware.intra_node is None:
        known = ", ".join(str(table.ranks) for table in hardware.broadcast)
        lacks.append(
            f"broadcast time over {ranks} ranks" + (f" (measured over {known})" if known else "")
        )
    return tuple(lacks)
