"""Builds a profile from what a vendor's or project's table states."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vllm_layershard.estimate.figure import Basis, Figure
from vllm_layershard.estimate.hardware import BusTable, Hardware, LowBitFormat, Topology

AIC: Final = "ai-dynamo/aiconfigurator, systems"
INFERSIM: Final = "alibaba/InferSim, gpu.py"
ML_ENGINEERING: Final = "stas00/ml-engineering"

GB: Final = 1e9
GIB: Final = 1 << 30
_MIB: Final = 1 << 20
_TERA: Final = 1e12


def stated(value: float, source: str) -> Figure:
    """A figure as a table states it: nobody here has measured it."""
    return Figure(value, "assumed", source)


def seen(gib: float, source: str, basis: Basis = "measured") -> Figure:
    """Memory as a process on the device sees it: torch's total, in GiB."""
    return Figure(round(gib * GIB), basis, source)


def device(
    name: str,
    source: str,
    *,
    memory: Figure,
    bandwidth: float,
    bf16: float,
    low_bit: float | None,
    link: float | None,
    between: float | None,
    nics: float | Figure | None = None,
    capability: float | Figure | None = None,
    nic_efficiency: Figure | None = None,
    bandwidth_source: str | None = None,
    bf16_source: str | None = None,
    link_source: str | None = None,
    peer: Figure | None = None,
    node: Figure | None = None,
    host: Figure | None = None,
    topology: Topology = "ring",
    low_bit_format: LowBitFormat = "fp8",
    bus: tuple[BusTable, ...] = (),
) -> Hardware:
    """Bandwidth in bytes/s, rates in TFLOP/s, links in GB/s one way; `between` is that of a NIC.

    `low_bit` is None where fp8 weights are computed in bf16.
    """

    def figure(value: float | Figure | None, unit: float, whence: str | None) -> Figure | None:
        if value is None or isinstance(value, Figure):
            return value
        return stated(value * unit, whence or source)

    hardware = Hardware(
        name=name,
        memory_bytes=memory,
        memory_bandwidth=figure(bandwidth, 1, bandwidth_source),
        bf16=figure(bf16, _TERA, bf16_source),
        low_bit=figure(low_bit, _TERA, bf16_source),
        intra_node=figure(link, GB, link_source),
        inter_node=figure(between, GB, link_source),
        peer_link=peer,
        compute_capability=figure(capability, 1, None),
        node_size=node or stated(8, source),
        host_size=host,
        nics=figure(nics, 1, link_source),
        topology=topology,
        low_bit_format=low_bit_format,
        bus=bus,
    )
    return hardware if nic_efficiency is None else replace(hardware, nic_efficiency=nic_efficiency)


def bus(
    ranks: int, at_4: float, at_32: float, at_128: float, at_512: float
) -> tuple[BusTable, ...]:
    """GB/s at 4, 32, 128 and 512 MiB."""
    source = f"NCCL all-gather over {ranks} devices, ai-dynamo/aiconfigurator data"
    sizes = (4 * _MIB, 32 * _MIB, 128 * _MIB, 512 * _MIB)
    rates = (at_4 * GB, at_32 * GB, at_128 * GB, at_512 * GB)
    return (BusTable(ranks, sizes, rates, "measured", source),)


def pcie(*reached: tuple[int, float]) -> tuple[BusTable, ...]:
    """GB/s that so many devices reach, whatever the size."""
    source = "NCCL over PCIe, ai-dynamo/aiconfigurator data"
    return tuple(
        BusTable(n, (512 * _MIB,), (rate * GB,), "measured", source) for n, rate in reached
    )
