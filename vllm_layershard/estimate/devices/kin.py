"""Devices without a profile of which another of the same chip or generation has one.

Sources: developer.nvidia.com/cuda-gpus, compute capabilities (GeForce RTX 50 and RTX PRO: 12.0;
Ada: 8.9; Ampere: 8.0 to 8.7); NVIDIA's Grace Hopper data sheet (96 GB of HBM3 or 144 GB of HBM3e
on a GH200; the 480 GB in its name are the CPU's); ROCm's system requirements (MI350X and MI355X:
gfx950).
"""

from __future__ import annotations

import re
from typing import Final

_KIN: Final = (
    (r"gh200\b.*(144g|hbm3e)", "H200"),
    (r"gh200\b", "H100"),
    (r"g?b100\b", "B200"),
    (r"(quadro-)?rtx-\d{4}(-[a-z]+)?-ada", "L40S"),
    (r"(geforce-)?rtx-50\d\d|rtx-pro-\d", "RTX-PRO-6000"),
    (r"(geforce-)?rtx-40\d\d|l(2|4|20|40|40g)\b", "L40S"),
    (r"(geforce-)?rtx-30\d\d|(quadro-)?rtx-a\d000|a(2|10|10g|16|30|40|800)\b", "A100"),
    (r"mi35\d", "MI355X"),
)
"""How a name begins, plain -> the profile."""

_GENERATION: Final = re.compile(r"910(-?[a-z]|-\d\d)?|[a-z-]*\d")
"""The part of a name that tells the generation: H2, MI3, 910B, 910_93."""


def is_of_one_generation(plain: str, other: str) -> bool:
    """Whether two names tell the same generation, by their letters and their first digit."""
    one, two = _GENERATION.match(plain), _GENERATION.match(other)
    return one is not None and two is not None and one[0] == two[0]


def kin_of(plain: str) -> str | None:
    """The profile of the same chip or generation, by a name in small letters with hyphens."""
    return next((profile for begins, profile in _KIN if re.match(begins, plain)), None)
