"""Figure: one number of a device with its source, its name and unit, and what it may be."""

from __future__ import annotations

import json
import math
from typing import Any, Final, Literal, NamedTuple

Basis = Literal["exact", "formula", "measured", "assumed"]
"""What stands behind a number. `exact`: the bytes themselves; `formula`: follows from stated
sizes; `measured`: on real hardware, by whom the source says; `assumed`: neither."""


class Figure(NamedTuple):
    """One number of a device, in the unit that its field says."""

    value: float
    basis: Basis
    source: str


LABELS: Final = {
    "memory_bytes": "memory",
    "memory_bandwidth": "memory bandwidth",
    "bf16": "bf16 rate",
    "low_bit": "fp8 or int8 rate",
    "intra_node": "link within a node",
    "inter_node": "link between nodes",
    "peer_link": "link to one peer",
    "compute_capability": "compute capability",
    "node_size": "devices of one fast link",
    "host_size": "devices a node",
    "nics": "NICs a node",
    "compute_efficiency": "compute efficiency",
    "memory_efficiency": "memory efficiency",
    "link_efficiency": "link efficiency",
    "nic_efficiency": "NIC efficiency",
    "latency": "broadcast latency",
    "latency_per_rank": "broadcast latency a rank",
    "product_slowdown": "slowdown of products beside a broadcast",
    "product_slowdown_least": "least slowdown of products beside a broadcast",
    "memory_slowdown": "slowdown of memory beside a broadcast",
    "broadcast_traffic": "memory traffic of a broadcast",
    "broadcast_slowdown": "slowdown of a broadcast beside compute",
    "copy_launch": "start of a copy",
}
"""Field of `Hardware` -> what a person calls it."""

UNITS: Final = {
    "memory_bytes": "bytes",
    "memory_bandwidth": "bytes/s",
    "bf16": "FLOP/s",
    "low_bit": "FLOP/s",
    "intra_node": "bytes/s",
    "inter_node": "bytes/s",
    "peer_link": "bytes/s",
    "latency": "s",
    "latency_per_rank": "s",
    "broadcast_traffic": "bytes a byte",
    "copy_launch": "s",
}
"""Field -> its unit; the others are plain numbers."""

MAY_BE_NULL: Final = frozenset(
    {
        "memory_bytes",
        "memory_bandwidth",
        "bf16",
        "low_bit",
        "intra_node",
        "inter_node",
        "peer_link",
        "compute_capability",
        "host_size",
        "nics",
        "memory_slowdown",
    }
)
"""Fields that may be unknown."""

LEAST_RATE: Final = 1e3
"""A file's bandwidth of fewer bytes per second is a slip of the unit."""

_LEAST: Final = {"bytes/s": 1.0, "FLOP/s": 1.0}
"""With less, times would leave the range of numbers."""
_LEAST_IN_A_FILE: Final = {"bytes/s": LEAST_RATE, "FLOP/s": 1e6}
_LEAST_SHARE: Final = 1e-3
_MAX_VALUE: Final = 1e18

_SHARES: Final = ("compute_efficiency", "memory_efficiency", "link_efficiency", "nic_efficiency")
_COUNTS: Final = {"node_size": "devices", "host_size": "devices", "nics": "NICs"}
_MAY_BE_ZERO: Final = (
    "latency",
    "latency_per_rank",
    "product_slowdown",
    "product_slowdown_least",
    "memory_slowdown",
    "broadcast_traffic",
    "broadcast_slowdown",
    "copy_launch",
)


def wrong_with(key: str, value: Any, *, in_a_file: bool = False) -> str | None:
    """Why a value cannot be this figure's, or is a slip of the unit in a file; None: it can be."""
    number = not isinstance(value, bool) and isinstance(value, int | float)
    may_be_zero = key in _MAY_BE_ZERO
    if (
        not number
        or not math.isfinite(value if abs(value) < _MAX_VALUE else math.inf)
        or value < 0
        or (value == 0 and not may_be_zero)
    ):
        above = "from 0" if may_be_zero else "above 0"
        return f"{shown(value)} is not a number {above} to {_MAX_VALUE:.0e}"
    if key in _SHARES and not _LEAST_SHARE <= value <= 1:
        return f"{shown(value)} is a share: from {_LEAST_SHARE} to 1"
    if key in _COUNTS and value != max(1, int(value)):
        return f"{shown(value)} is not a whole number of {_COUNTS[key]}"
    unit = UNITS.get(key, "")
    least = (_LEAST_IN_A_FILE if in_a_file else _LEAST).get(unit, 0)
    if value < least:
        return f"{shown(value)} is below {least:g} {unit}: no device's"
    return None


def shown(value: Any) -> str:
    """A value as JSON, at most 80 characters of it."""
    try:
        text = json.dumps(value, default=repr)
    except (RecursionError, ValueError):
        return "a deep nest"
    return text if len(text) <= 80 else text[:77] + "..."
