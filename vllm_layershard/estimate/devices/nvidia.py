"""NVIDIA's devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vllm_layershard.estimate.devices.build import (
    AIC,
    INFERSIM,
    bus,
    device,
    pcie,
    seen,
    stated,
)
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.hardware import Hardware

# Why memory differs: 80 GB of an H100 are 80 GiB, of which nvidia-smi shows 79.65 and torch 79.11.
_NVL72 = Figure(72, "assumed", "devices of one NVL72 rack")
_TRAY = Figure(4, "assumed", "devices of one of its 18 compute trays")
_SPARK = "NVIDIA DGX Spark hardware guide"
_SAME_AS_H100 = "as an H100's: the same 80 GB, alibaba/InferSim, gpu.py"
_FROM_FP4 = (
    "from NVIDIA's 1 PFLOP of fp4 with sparsity: half of it without, fp8 a half of that and bf16 a "
    "quarter, as ai-dynamo/aiconfigurator has them for the RTX PRO 6000"
)


def _smi(mib: int) -> str:
    """The total of nvidia-smi beside that of torch."""
    return f"public server logs; nvidia-smi says {mib:,} MiB, {AIC}"


PROFILES: Final[Mapping[str, Callable[[], Hardware]]] = {
    "A100": lambda: device(
        "A100", AIC, memory=seen(79.32, "vllm-project/vllm-omni issue 276"),
        bandwidth=2.039e12, bf16=312, low_bit=None, link=300, between=25, nics=8, capability=8.0,
        bus=bus(8, 77, 135, 178, 205),
    ),
    "H20": lambda: device(
        "H20", INFERSIM,
        memory=seen(
            95.0,
            "as on a GH200 of the same 96 GB, where nvidia-smi says 97,871 MiB: developer.nvidia."
            "com, CPU-GPU memory sharing",
            "assumed",
        ),
        bandwidth=4.096e12, bf16=148, low_bit=296, link=450, between=50, capability=9.0,
        nics=stated(8, f"{INFERSIM}: 50 GB/s a device with 8 NICs, 25 with 4"),
    ),
    "H20-141": lambda: device(
        "H20-141", f"as the H20's: {INFERSIM}",
        memory=seen(
            139.72,
            "as an H200's: nvidia-smi says 143,771 MiB of both, sgl-project/sglang issue 6418",
            "assumed",
        ),
        bandwidth=4.8e12, bf16=148, low_bit=296, link=450, between=50, nics=8, capability=9.0,
        bandwidth_source="NVIDIA's number as NVIDIA/nvbandwidth issue 48 has it",
    ),
    "H800": lambda: device(
        "H800", INFERSIM, memory=seen(79.11, _SAME_AS_H100, "assumed"),
        bandwidth=3.43e12, bf16=989, low_bit=1979, link=200, between=50, capability=9.0,
        nics=stated(8, "one a device: NIC1 to NIC8 in sgl-project/sglang issue 2889"),
    ),
    "H100": lambda: device(
        "H100", AIC, memory=seen(79.11, "vllm-project/vllm issue 27508"),
        bandwidth=3.35e12, bf16=989, low_bit=1978, link=450, between=50, nics=8, capability=9.0,
        bus=bus(8, 110, 240, 302, 336),
    ),
    "H200": lambda: device(
        "H200", AIC, memory=seen(139.72, "vllm-project/vllm issue 23192"),
        bandwidth=4.8e12, bf16=989, low_bit=1978, link=450, between=50, nics=8, capability=9.0,
        bus=bus(8, 89, 238, 309, 337),
    ),
    "B200": lambda: device(
        "B200", AIC, memory=seen(178.35, "LMCache/LMCache pull request 3171"),
        bandwidth=7.7e12, bf16=2250, low_bit=4500, link=900, between=100, nics=8, capability=10.0,
        bus=bus(8, 126, 258, 568, 617),
    ),
    "B300": lambda: device(
        "B300", AIC, memory=seen(267.69, _smi(275_040)),
        bandwidth=7.75e12, bf16=2250, low_bit=4500, link=900, between=100, nics=8, capability=10.3,
        bus=bus(8, 129, 262, 574, 620),
    ),
    "GB200": lambda: device(
        "GB200", AIC, memory=seen(184.31, _smi(189_471)),
        bandwidth=8.0e12, bf16=2500, low_bit=5000, link=900, between=100, nics=4, capability=10.0,
        node=_NVL72, host=_TRAY, bus=bus(4, 121, 350, 516, 564),
    ),
    "GB300": lambda: device(
        "GB300", AIC, memory=seen(276.5, "stas00/ml-engineering, debug/pytorch.md"),
        bandwidth=8.0e12, bf16=2500, low_bit=5000, link=900, between=100, nics=4, capability=10.3,
        node=_NVL72, host=_TRAY, bus=bus(4, 126, 356, 524, 571),
    ),
    # Eight L40S reach 1.2 GB/s: a network card's rate says nothing of their broadcasts.
    "L40S": lambda: device(
        "L40S", AIC, memory=seen(44.4, _smi(46_068)),
        bandwidth=0.864e12, bf16=362, low_bit=733, link=32, between=None, capability=8.9,
        bus=pcie((2, 19.6), (8, 1.2)),
    ),
    # The network card of this project's table is a placeholder, and left out.
    "RTX-PRO-6000": lambda: device(
        "RTX-PRO-6000", AIC,
        memory=seen(95.01, _smi(97_887)),
        bandwidth=1.792e12, bf16=467.8, low_bit=935.6, link=64, between=None, capability=12.0,
        bus=pcie((2, 31.8), (4, 23.4), (8, 22.9)),
    ),
    # A node has one device: the link within it is the one that it has, and never asked for.
    "GB10": lambda: device(
        "GB10", _SPARK,
        memory=seen(
            121.69, "MiaAI-Lab/GLM-5.3-Flash-EXL3-2x-DGX-Sparks issue 47; shared with the CPU"
        ),
        bandwidth=273e9, bf16=125, low_bit=250, link=25, between=25, nics=1, capability=12.1,
        bf16_source=_FROM_FP4,
        node=Figure(1, "assumed", "one device a DGX Spark"),
    ),
}  # fmt: skip
