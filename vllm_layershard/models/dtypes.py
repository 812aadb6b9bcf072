"""Element sizes of the data types that a planned tensor can have."""

from __future__ import annotations

from typing import Final

DTYPE_BYTES: Final[dict[str, int]] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float8_e4m3fn": 1,
}
"""Bytes of one element, by torch's name without the module."""
