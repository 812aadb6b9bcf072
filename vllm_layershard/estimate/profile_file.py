"""Profile file: a device that the user describes or has measured, as JSON.

    {"name": "our H20", "base": "H20", "inter_node": 25e9,
     "memory_bandwidth": {"value": 3.9e12, "basis": "measured", "source": "our copy test"},
     "broadcast": [{"ranks": 8, "sizes": [4194304, 134217728], "seconds": [9e-5, 4e-4]}]}

`base` names a bundled profile whose numbers hold where the file gives none. A key is a field of
`Hardware`; null takes a number away. `layershard calibrate` writes such a file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

from vllm_layershard.bounded_file import UnreadableError, read_named
from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate.hardware import (
    LABELS,
    UNITS,
    Basis,
    BusTable,
    Figure,
    Hardware,
    LowBitFormat,
    TimeTable,
    Topology,
    unknown_hardware,
)
from vllm_layershard.estimate.profiles import bundled_profile, profile_names

_MAX_BYTES: Final = 1 << 20
_MAX_ENTRIES: Final = 256
_MAX_TEXT: Final = 200
_MAX_VALUE: Final = 1e18

_LEAST: Final = {"bytes/s": 1e3, "FLOP/s": 1e6}
"""Less than this is a slip of the unit, and times would leave the range of numbers."""
_LEAST_SHARE: Final = 1e-3
_LEAST_SECONDS: Final = 1e-9

_SHARES: Final = ("compute_efficiency", "memory_efficiency", "link_efficiency")
_MAY_BE_ZERO: Final = (
    "latency",
    "latency_per_rank",
    "product_slowdown",
    "memory_slowdown",
    "broadcast_traffic",
    "broadcast_slowdown",
    "copy_launch",
)
_MAY_BE_NULL: Final = (
    "memory_bytes",
    "memory_bandwidth",
    "bf16",
    "low_bit",
    "intra_node",
    "inter_node",
    "peer_link",
    "host_size",
    "memory_slowdown",
)


def looks_like_a_file(text: str) -> bool:
    """Whether `--hardware` means a file rather than a name."""
    return text.lower().endswith(".json") or os.sep in text


def profile(name: str) -> Hardware:
    """The bundled profile of a device, in any case, or the one in a file of that name.

    Raises:
        HardwareError: none of that name; lists the known ones. Or a file that cannot be used.
    """
    found = bundled_profile(name)
    if found is not None:
        return found
    if looks_like_a_file(name):
        return read_profile(name)
    raise unknown_hardware(name, profile_names())


def read_profile(path: str) -> Hardware:
    """Read a file.

    Raises:
        HardwareError: it cannot be read, is not JSON, or a value in it cannot be.
    """
    return _Reader(path).hardware(_parsed(path))


def _parsed(path: str) -> Any:
    try:
        raw = read_named(Path(path).expanduser(), _MAX_BYTES)
    except RuntimeError:
        raise HardwareError(f"--hardware {path}: there is no such user") from None
    except UnreadableError as error:
        raise HardwareError(f"--hardware {path}: {error}") from None
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise HardwareError(f"--hardware {path}: is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise HardwareError(f"--hardware {path}: is not a profile: nested too deeply") from None
    except ValueError as error:
        raise HardwareError(f"--hardware {path}: is not valid JSON: {error}") from None


class _Reader:
    """Checks one file's values; every message names the file and the key."""

    def __init__(self, path: str) -> None:
        self._path = path

    def hardware(self, document: Any) -> Hardware:
        if not isinstance(document, dict):
            self._refuse("a JSON object was expected")
        readers = self._readers()
        known = {*readers, "base"}
        unknown = [key for key in document if key not in known]
        if unknown:
            self._refuse(f"{_shown(unknown[0])}: no such key; known are {', '.join(sorted(known))}")
        base = Hardware(name=Path(self._path).stem)
        if "base" in document:
            base = self._base(document["base"])
        given = {"name": Path(self._path).stem} | {
            key: read(key, document[key]) for key, read in readers.items() if key in document
        }
        return replace(base, **given)

    def _readers(self) -> dict[str, Callable[[str, Any], Any]]:
        """How each key is read. A key is known because it stands here, so none can be ignored."""
        return {
            "name": self._text,
            **dict.fromkeys(LABELS, self._figure),
            "topology": partial(self._choice, known=get_args(Topology)),
            "low_bit_format": partial(self._choice, known=get_args(LowBitFormat)),
            "bus": partial(self._tables, column="bandwidths", table=BusTable),
            "broadcast": partial(self._tables, column="seconds", table=TimeTable),
        }

    def _choice(self, key: str, value: Any, known: tuple[str, ...]) -> str:
        if not isinstance(value, str) or value not in known:
            self._refuse(f"{key}: {_shown(value)} is not {' or '.join(known)}")
        return value

    def _base(self, value: Any) -> Hardware:
        base = bundled_profile(value) if isinstance(value, str) else None
        if base is None:
            names = ", ".join(profile_names())
            self._refuse(f"base: {_shown(value)} is no bundled profile; those are {names}")
        return base

    def _figure(self, key: str, value: Any) -> Figure | None:
        if value is None and key in _MAY_BE_NULL:
            return None
        if not isinstance(value, dict):
            return Figure(self._number(key, value), "assumed", f"given in {self._path}")
        extra = [name for name in value if name not in ("value", "basis", "source")]
        if extra or "value" not in value:
            self._refuse(f"{key}: an object has value, basis and source, this one {_shown(value)}")
        return Figure(self._number(key, value["value"]), *self._standing(key, value))

    def _standing(self, key: str, value: dict[str, Any]) -> tuple[Basis, str]:
        basis = value.get("basis", "assumed")
        if basis not in get_args(Basis):
            self._refuse(f"{key}: basis {_shown(basis)} is not one of {', '.join(get_args(Basis))}")
        return basis, self._text(f"{key}: source", value.get("source", f"given in {self._path}"))

    def _number(self, key: str, value: Any) -> float:
        number = not isinstance(value, bool) and isinstance(value, int | float)
        least = key in _MAY_BE_ZERO
        if (
            not number
            or not math.isfinite(value if abs(value) < _MAX_VALUE else math.inf)
            or value < 0
            or (value == 0 and not least)
        ):
            above = "from 0" if least else "above 0"
            self._refuse(f"{key}: {_shown(value)} is not a number {above} to {_MAX_VALUE:.0e}")
        if key in _SHARES and not _LEAST_SHARE <= value <= 1:
            self._refuse(f"{key}: {_shown(value)} is a share: from {_LEAST_SHARE} to 1")
        if key in ("node_size", "host_size") and value != max(1, int(value)):
            self._refuse(f"{key}: {_shown(value)} is not a whole number of devices")
        unit = UNITS.get(key, "")
        if value < _LEAST.get(unit, 0):
            self._refuse(f"{key}: {_shown(value)} is below {_LEAST[unit]:g} {unit}: no device's")
        return float(value)

    def _rates(self, key: str, column: str, values: list[Any]) -> tuple[float, ...]:
        least = _LEAST["bytes/s"] if column == "bandwidths" else _LEAST_SECONDS
        rates = tuple(self._number(f"{key}: {column}", value) for value in values)
        if min(rates) < least:
            self._refuse(f"{key}: {column}: {_shown(min(rates))} is below {least:g}: no device's")
        return rates

    def _tables(self, key: str, value: Any, column: str, table: Callable[..., Any]) -> Any:
        if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
            self._refuse(f"{key}: a list of tables was expected")
        return tuple(self._table(key, entry, column, table) for entry in value)

    def _table(self, key: str, value: Any, column: str, table: Callable[..., Any]) -> Any:
        names = {"ranks", "sizes", column}
        if not isinstance(value, dict) or not names <= set(value) <= names | {"basis", "source"}:
            self._refuse(
                f"{key}: a table has ranks, sizes, {column}, basis and source, "
                f"this one {_shown(value)}"
            )
        sizes, values, ranks = value["sizes"], value[column], value["ranks"]
        for name, entries in (("sizes", sizes), (column, values)):
            if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_ENTRIES:
                self._refuse(f"{key}: {name}: 1 to {_MAX_ENTRIES} numbers were expected")
        if len(sizes) != len(values):
            self._refuse(f"{key}: {len(sizes)} sizes, but {len(values)} {column}")
        whole = [ranks, *sizes]
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in whole) or ranks < 2:
            self._refuse(f"{key}: ranks (from 2) and sizes are whole numbers above 0")
        for n in whole:
            self._number(f"{key}: sizes", n)
        if any(a >= b for a, b in pairwise(sizes)):
            self._refuse(f"{key}: sizes must ascend")
        rates = self._rates(key, column, values)
        return table(ranks, tuple(sizes), rates, *self._standing(key, value))

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable() or not value:
            self._refuse(f"{key}: {_shown(value)} is not a printable text")
        return value[:_MAX_TEXT]

    def _refuse(self, what: str) -> NoReturn:
        raise HardwareError(f"--hardware {self._path}: {what}")


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a deep nest"
    return text if len(text) <= 80 else text[:77] + "..."
