"""The hardware profiles that come with the package, and the names that find them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final, cast

from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate.hardware import Hardware

DEFAULT: Final = "H200"
"""Assumed where the user names none."""

_NVIDIA: Final = (
    *("A100", "H20", "H20-141", "H800", "H100", "H200", "B200", "B300", "GB200", "GB300"),
    *("L40S", "RTX-PRO-6000", "GB10"),
)
_AMD: Final = ("MI300X", "MI325X", "MI355X")
_ASCEND: Final = ("910B1", "910B2", "910B3", "910B4", "910C", "910C-board")

_VENDORS: Final = {
    **dict.fromkeys(_NVIDIA, "nvidia"),
    **dict.fromkeys(_AMD, "amd"),
    **dict.fromkeys(_ASCEND, "ascend"),
}
"""Profile -> the file of its vendor, which is read when one of its profiles is asked for."""

_NEAR: Final = 0.65
"""Two names of which so much is alike are of one family, or differ by a slip of the pen."""

PRINTED: Final = {
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA H20-3e": "H20-141",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA B300 SXM6 AC": "B300",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX-PRO-6000",
    "NVIDIA RTX PRO 6000 Server Edition": "RTX-PRO-6000",
    "NVIDIA RTX PRO 6000 Workstation Edition": "RTX-PRO-6000",
    "NVIDIA DGX Spark": "GB10",
    "AMD Instinct MI300X OAM": "MI300X",
    "AMD Instinct MI325X OAM": "MI325X",
    "AMD Instinct MI355X OAM": "MI355X",
    "Ascend910": "910C",
    "Ascend910_9391": "910C",
    "Ascend910_9392": "910C",
    "910C-die": "910C",
}
"""What nvidia-smi, amd-smi, npu-smi and torch print -> the profile, and a machine of one device.
A vendor's name before the profile's own needs no line: `NVIDIA H200`, `Ascend910B3`."""


def profile_names() -> tuple[str, ...]:
    """The names of the bundled profiles, as `--hardware` takes them."""
    return tuple(_VENDORS)


def bundled_profile(name: str) -> Hardware | None:
    """The profile of a device by its name or by the one that its tool prints, in any case.

    None: there is none of that name.
    """
    known = name if name in _VENDORS else _names().get(_plain(name))
    if known is None:
        return None
    module = import_module(f"vllm_layershard.estimate.devices.{_VENDORS[known]}")
    return cast(Mapping[str, Callable[[], Hardware]], module.PROFILES)[known]()


def unknown_hardware(name: str) -> HardwareError:
    """The error for a device without a profile: the nearest one, if any is near, and all."""
    near = _nearest(name)
    nearest = "" if near is None else f"nearest: {near}; "
    return HardwareError(
        f"--hardware {name or 'is empty'}: there is no profile of that name, and its numbers are "
        f"not guessed; {nearest}known are {', '.join(_VENDORS)}; or give a profile FILE.json "
        "(layershard calibrate writes one)"
    )


def _names() -> dict[str, str]:
    """Every name that finds a profile, plain -> the profile."""
    printed = {_plain(text): one for text, one in PRINTED.items()}
    return printed | {_plain(one): one for one in _VENDORS}


def _plain(name: str) -> str:
    """A name without its vendor, in small letters, its parts joined by hyphens."""
    text = re.sub(r"\b(nvidia|amd|instinct|huawei|ascend(?=\d)|ascend\b)", " ", name.lower())
    return "-".join(re.findall(r"[a-z0-9]+", text))


def _nearest(name: str) -> str | None:
    """The profile that its name begins with, or of its generation, or else spelled like it.

    A device of another generation is none: it has another memory and other formats.
    """
    from difflib import SequenceMatcher  # takes milliseconds that no other command needs

    from vllm_layershard.estimate.devices.kin import (  # few devices are unknown
        is_of_one_generation,
        kin_of,
    )

    key = _plain(name)
    begins = [one for one in _VENDORS if re.match(rf"{_plain(one)}(?!\d)", key)]
    if begins:
        return max(begins, key=len)
    kin = kin_of(key)
    if kin is not None:
        return kin
    names = {one: each for one, each in _names().items() if is_of_one_generation(key, one)}
    alike = {one: SequenceMatcher(None, key, one).ratio() for one in names}
    best = max(alike, key=lambda one: alike[one], default="")
    return names[best] if alike.get(best, 0.0) >= _NEAR else None
