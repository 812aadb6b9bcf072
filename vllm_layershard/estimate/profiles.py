"""The hardware profiles that come with the package."""

from __future__ import annotations

from typing import Final

from vllm_layershard.estimate.hardware import (
    Basis,
    BusTable,
    Figure,
    Hardware,
    LowBitFormat,
    Topology,
)

_AIC = "ai-dynamo/aiconfigurator, systems"
_INFERSIM = "alibaba/InferSim, gpu.py"
_MSM = "Ascend/msmodeling, tensor_cast/device.py"
_GENZ = "GenZ, which cites AMD"
_PRESETS = "third-party presets"
_GB, _TERA, _MIB, _GIB = 1e9, 1e12, 1 << 20, 1 << 30

DEFAULT: Final = "H200"
"""Assumed where the user names none."""


def _stated(value: float | None, unit: float, source: str) -> Figure | None:
    """A figure as a vendor's or project's table states it: nobody here has measured it."""
    return None if value is None else Figure(value * unit, "assumed", source)


def _device(
    name: str,
    source: str,
    *,
    memory: float,
    bandwidth: float,
    bf16: float,
    low_bit: float | None,
    link: float | None,
    between: float | None,
    bf16_source: str | None = None,
    peer: Figure | None = None,
    node: Figure | None = None,
    host: Figure | None = None,
    topology: Topology = "ring",
    low_bit_format: LowBitFormat = "fp8",
    bus: tuple[BusTable, ...] = (),
) -> Hardware:
    """Memory in bytes, bandwidth in bytes/s, rates in TFLOP/s, links in GB/s one way.

    `low_bit` is None where fp8 weights are computed in bf16.
    """
    return Hardware(
        name=name,
        memory_bytes=_stated(memory, 1, source),
        memory_bandwidth=_stated(bandwidth, 1, source),
        bf16=_stated(bf16, _TERA, bf16_source or source),
        low_bit=_stated(low_bit, _TERA, source),
        intra_node=_stated(link, _GB, source),
        inter_node=_stated(between, _GB, source),
        peer_link=peer,
        node_size=node or Figure(8, "assumed", source),
        host_size=host,
        topology=topology,
        low_bit_format=low_bit_format,
        bus=bus,
    )


def _bus(
    ranks: int, at_4: float, at_32: float, at_128: float, at_512: float
) -> tuple[BusTable, ...]:
    """GB/s at 4, 32, 128 and 512 MiB."""
    source = f"NCCL all-gather over {ranks} devices, ai-dynamo/aiconfigurator data"
    sizes = (4 * _MIB, 32 * _MIB, 128 * _MIB, 512 * _MIB)
    rates = (at_4 * _GB, at_32 * _GB, at_128 * _GB, at_512 * _GB)
    return (BusTable(ranks, sizes, rates, "measured", source),)


def _pcie(*reached: tuple[int, float]) -> tuple[BusTable, ...]:
    """GB/s that so many devices reach, whatever the size."""
    basis: Basis = "measured"
    source = "NCCL over PCIe, ai-dynamo/aiconfigurator data"
    return tuple(BusTable(n, (512 * _MIB,), (rate * _GB,), basis, source) for n, rate in reached)


_TIB = float(1 << 40)
_SUPERNODE = Figure(16, "assumed", "dies of one server; Ascend/msmodeling")
_NVL72 = Figure(72, "assumed", "devices of one NVL72 rack")
_NVL72_HOST = Figure(4, "assumed", "devices of one of its 18 compute trays")
_XGMI = Figure(64 * _GB, "assumed", "one of seven links, each to another device")
_DISPUTED = f"{_PRESETS}, which say 379, 400 and 414: the lowest"

# fp8 weights do not run on Ascend: their int8 rate takes the place. The full meshes of A2 servers
# have 7 links of 28 GB/s. That eight 910B reach about 72 GB/s in a broadcast was inferred by
# others; the mesh's formula gives 78.
_ALL: Final = {
    hardware.name.lower(): hardware
    for hardware in (
        _device(
            "A100", _AIC, memory=80 * _GIB, bandwidth=2.039e12, bf16=312, low_bit=None,
            link=300, between=25, bus=_bus(8, 77, 135, 178, 205),
        ),
        _device(
            "H20", _INFERSIM, memory=96 * _GB, bandwidth=4.096e12, bf16=148, low_bit=296,
            link=450, between=50,
        ),
        _device(
            "H100", _AIC, memory=80 * _GIB, bandwidth=3.35e12, bf16=989, low_bit=1978,
            link=450, between=50, bus=_bus(8, 110, 240, 302, 336),
        ),
        _device(
            "H200", _AIC, memory=141 * _GB, bandwidth=4.8e12, bf16=989, low_bit=1978,
            link=450, between=50, bus=_bus(8, 89, 238, 309, 337),
        ),
        _device(
            "B200", _AIC, memory=180 * _GIB, bandwidth=7.7e12, bf16=2250, low_bit=4500,
            link=900, between=100, bus=_bus(8, 126, 258, 568, 617),
        ),
        _device(
            "GB200", _AIC, memory=189_471 * _MIB, bandwidth=8.0e12, bf16=2500, low_bit=5000,
            link=900, between=100, node=_NVL72, host=_NVL72_HOST,
            bus=_bus(4, 121, 350, 516, 564),
        ),
        _device(
            "MI300X", _GENZ, memory=192 * _GB, bandwidth=5.3e12, bf16=1307, low_bit=2600,
            link=448, between=None, peer=_XGMI,
        ),
        # Its cards reach 1.2 GB/s among eight: a network card's rate says nothing of a broadcast.
        _device(
            "L40S", _AIC, memory=46_068 * _MIB, bandwidth=0.864e12, bf16=362, low_bit=733,
            link=32, between=None, bus=_pcie((2, 19.6), (8, 1.2)),
        ),
        _device(
            "910B1", _PRESETS, memory=64 * _GIB, bandwidth=1.6 * _TIB, bf16=379, low_bit=758,
            link=196, between=25, bf16_source=_DISPUTED, topology="mesh", low_bit_format="int8",
        ),
        _device(
            "910B2", _MSM, memory=64 * _GIB, bandwidth=1.6 * _TIB, bf16=353.9, low_bit=752,
            link=196, between=25, topology="mesh", low_bit_format="int8",
        ),
        _device(
            "910B3", _MSM, memory=64 * _GIB, bandwidth=1.6 * _TIB, bf16=294.9, low_bit=626,
            link=196, between=25, topology="mesh", low_bit_format="int8",
        ),
        _device(
            "910B4", _MSM, memory=32 * _GIB, bandwidth=0.8 * _TIB, bf16=245.8, low_bit=560,
            link=64, between=None, low_bit_format="int8",
        ),
        _device(
            "910C", _MSM, memory=64 * _GIB, bandwidth=1.6 * _TIB, bf16=353.9, low_bit=752,
            link=196, between=196, node=_SUPERNODE, low_bit_format="int8",
        ),
    )
}  # fmt: skip


def profile_names() -> tuple[str, ...]:
    """The names of the bundled profiles, as `--hardware` takes them."""
    return tuple(hardware.name for hardware in _ALL.values())


def bundled_profile(name: str) -> Hardware | None:
    """The profile of a device, in any case, or None if there is none of that name."""
    return _ALL.get(name.lower())
