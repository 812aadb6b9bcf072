"""AMD's devices. No source was found for the network cards beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vllm_layershard.estimate.devices.build import GB, ML_ENGINEERING, device, seen
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.hardware import Hardware

_GENZ = "GenZ, which cites AMD"
_RATES = f"{ML_ENGINEERING}, compute/accelerator, which cites AMD"
_LINKS = f"{ML_ENGINEERING}, network, which cites AMD"


def _xgmi(rate: float) -> Figure:
    return Figure(rate * GB, "assumed", "one of seven links, each to another device")


PROFILES: Final[Mapping[str, Callable[[], Hardware]]] = {
    "MI300X": lambda: device(
        "MI300X", _GENZ, memory=seen(191.98, "ROCm/vllm issue 375"),
        bandwidth=5.3e12, bf16=1307, low_bit=2600, link=448, between=None, peer=_xgmi(64),
    ),
    "MI325X": lambda: device(
        "MI325X", _RATES, memory=seen(255.98, "vllm-project/vllm issue 41962"),
        bandwidth=6.0e12, bf16=1300, low_bit=2610, link=448, between=None, peer=_xgmi(64),
        link_source=_LINKS,
    ),
    "MI355X": lambda: device(
        "MI355X", _RATES,
        memory=seen(
            287.98,
            "public server logs; SemiAnalysisAI/InferenceX pull request 2522: 0.95 of it is 273.6",
        ),
        bandwidth=8.0e12, bf16=2500, low_bit=5000, link=535.5, between=None, peer=_xgmi(76.5),
        link_source=_LINKS,
    ),
}  # fmt: skip
