"""The hardware profiles that come with the package."""

from __future__ import annotations

from typing import Final

from vllm_layershard.estimate.hardware import BusTable, Figure, Hardware, unknown_hardware

_AIC = "ai-dynamo/aiconfigurator, systems"
_INFERSIM = "alibaba/InferSim, gpu.py"
_MSM = "Ascend/msmodeling, tensor_cast/device.py"
_GB, _TERA, _MIB, _GIB = 1e9, 1e12, 1 << 20, 1 << 30

DEFAULT: Final = "H200"
"""Assumed where the user names none."""


def _stated(value: float, source: str) -> Figure:
    """A figure as a vendor's or project's table states it: nobody here has measured it."""
    return Figure(value, "assumed", source)


def _bus(at_4: float, at_32: float, at_128: float, at_512: float) -> BusTable:
    """GB/s at 4, 32, 128 and 512 MiB."""
    return BusTable(
        sizes=(4 * _MIB, 32 * _MIB, 128 * _MIB, 512 * _MIB),
        bandwidths=(at_4 * _GB, at_32 * _GB, at_128 * _GB, at_512 * _GB),
        basis="measured",
        source="NCCL all-gather over 8 devices, ai-dynamo/aiconfigurator data",
    )


def _nvidia(
    name: str,
    memory: float,
    bandwidth: float,
    bf16: float,
    low_bit: float | None,
    link: float,
    inter_node: float,
    source: str,
    bus: BusTable | None,
) -> Hardware:
    """Memory in bytes, bandwidth in TB/s, rates in TFLOP/s, links in GB/s.

    `low_bit` is None where fp8 weights are computed in bf16.
    """
    return Hardware(
        name=name,
        memory_bytes=_stated(memory, source),
        memory_bandwidth=_stated(bandwidth * _TERA, source),
        bf16=_stated(bf16 * _TERA, source),
        low_bit=None if low_bit is None else _stated(low_bit * _TERA, source),
        intra_node=_stated(link * _GB, source),
        inter_node=_stated(inter_node * _GB, source),
        node_size=8,
        bus=bus,
    )


def _ascend(name: str, bf16: float, int8: float, inter_node: float, node_size: int) -> Hardware:
    """Rates in TFLOP/s, links in GB/s. fp8 weights do not run there: int8 takes their place."""
    return Hardware(
        name=name,
        memory_bytes=_stated(64 * _GIB, _MSM),
        memory_bandwidth=_stated(1.6 * (1 << 40), _MSM),
        bf16=_stated(bf16 * _TERA, _MSM),
        low_bit=_stated(int8 * _TERA, _MSM),
        intra_node=_stated(196 * _GB, _MSM),
        inter_node=_stated(inter_node * _GB, _MSM),
        node_size=node_size,
    )


_ALL: Final = {
    profile.name.lower(): profile
    for profile in (
        _nvidia("A100", 80 * _GIB, 2.039, 312, None, 300, 25, _AIC, _bus(77, 135, 178, 205)),
        _nvidia("H20", 96 * _GB, 4.096, 148, 296, 450, 50, _INFERSIM, None),
        _nvidia("H100", 80 * _GIB, 3.35, 989, 1978, 450, 50, _AIC, _bus(110, 240, 302, 336)),
        _nvidia("H200", 141 * _GB, 4.8, 989, 1978, 450, 50, _AIC, _bus(89, 238, 309, 337)),
        _nvidia("B200", 180 * _GIB, 7.7, 2250, 4500, 900, 100, _AIC, _bus(126, 258, 568, 617)),
        _ascend("910B2", 353.9, 752, 25, 8),
        _ascend("910B3", 294.9, 626, 25, 8),
        _ascend("910C", 353.9, 752, 196, 16),
    )
}


def profile_names() -> tuple[str, ...]:
    """The names that `--hardware` takes."""
    return tuple(profile.name for profile in _ALL.values())


def profile(name: str) -> Hardware:
    """The profile of a device, in any case.

    Raises:
        HardwareError: none of that name; lists the known ones.
    """
    found = _ALL.get(name.lower())
    if found is None:
        raise unknown_hardware(name, profile_names())
    return found
