"""Huawei's Ascend devices. fp8 weights do not run there: their int8 rate takes the place.

The full meshes of A2 servers have 7 links of 28 GB/s. That eight 910B reach about 72 GB/s in a
broadcast was inferred by others; the mesh's formula gives 78.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from vllm_layershard.estimate.devices.build import device, seen, stated
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.hardware import Hardware

_MSM = "Ascend/msmodeling, tensor_cast/device.py"
_PRESETS = "third-party presets"
_DISPUTED = f"{_PRESETS}, which say 379, 400 and 414: the lowest"
_CLOUDMATRIX = "CloudMatrix384, arXiv 2506.12708"
_TIB = float(1 << 40)
_NICS_REACH = Figure(0.7, "assumed", _MSM)

_A2 = partial(
    device, bandwidth=1.6 * _TIB, link=196, between=25, topology="mesh", low_bit_format="int8",
    nic_efficiency=_NICS_REACH,
)  # fmt: skip
_A2_MEMORY = seen(60.96, "vllm-project/vllm-ascend issue 5020, of an Atlas 800I A2 with 64 GB")
_DIE_GIB = 61.27
_DIE_LOG = "sgl-project/sglang issue 29838, of an A3 server"

PROFILES: Final[Mapping[str, Callable[[], Hardware]]] = {
    "910B1": lambda: _A2(
        "910B1", _PRESETS, memory=_A2_MEMORY, bf16=379, low_bit=758, nics=8, bf16_source=_DISPUTED
    ),
    "910B2": lambda: _A2("910B2", _MSM, memory=_A2_MEMORY, bf16=353.9, low_bit=752, nics=8),
    "910B3": lambda: _A2("910B3", _MSM, memory=_A2_MEMORY, bf16=294.9, low_bit=626, nics=8),
    "910B4": lambda: device(
        "910B4", _MSM, memory=seen(29.49, "vllm-project/vllm-omni issue 2968"),
        bandwidth=0.8 * _TIB, bf16=245.8, low_bit=560, link=64, between=None,
        low_bit_format="int8",
    ),
    "910C": lambda: device(
        "910C", _MSM, memory=seen(_DIE_GIB, _DIE_LOG),
        bandwidth=1.6 * _TIB, bf16=353.9, low_bit=752, link=196, between=196, nics=16,
        node=Figure(16, "assumed", "dies of one server; Ascend/msmodeling"), low_bit_format="int8",
        nic_efficiency=_NICS_REACH,
    ),
    "910C-board": lambda: device(
        "910C-board", f"both dies: {_MSM}",
        memory=seen(2 * _DIE_GIB, f"twice a die's: {_DIE_LOG}", "formula"),
        bandwidth=3.2 * _TIB, bf16=707.8, low_bit=1504, link=392, between=392,
        nics=stated(8, "one port a board; Ascend/msmodeling"), link_source=_CLOUDMATRIX,
        node=Figure(8, "assumed", "boards of one server; Ascend/msmodeling"),
        low_bit_format="int8", nic_efficiency=_NICS_REACH,
    ),
}  # fmt: skip
