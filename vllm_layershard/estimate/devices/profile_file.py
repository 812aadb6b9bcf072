"""Profile file: a device that the user describes or has measured, as JSON.

    {"name": "our H20", "base": "H20", "inter_node": 25e9,
     "memory_bandwidth": {"value": 3.9e12, "basis": "measured", "source": "our copy test"},
     "broadcast": [{"ranks": 8, "sizes": [4194304, 134217728], "seconds": [9e-5, 4e-4]}]}

`base` names a bundled profile whose numbers hold where the file gives none. A key is a field of
`Hardware`; null takes a number away. Where a node has other devices than the base's, and nothing is
said of NICs, each device has as many as there. `layershard calibrate` writes such a file, and what
`layershard hardware NAME --json` prints is one, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

from vllm_layershard.bounded_file import UnreadableError, json_fault, read_named
from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate.devices.bundled import (
    bundled_profile,
    profile_names,
)
from vllm_layershard.estimate.figure import (
    LABELS,
    LEAST_RATE,
    MAY_BE_NULL,
    UNITS,
    Basis,
    Figure,
    shown,
    wrong_with,
)
from vllm_layershard.estimate.hardware import (
    BusTable,
    Hardware,
    LowBitFormat,
    TimeTable,
    Topology,
)

_MAX_BYTES: Final = 1 << 20
_MAX_ENTRIES: Final = 256
_MAX_TEXT: Final = 200

_LEAST_SECONDS: Final = 1e-9
"""Less than this is a slip of the unit in a table of times."""


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
        raise HardwareError(f"--hardware {path}: {json_fault(error)}") from None


class _Reader:
    """Checks one file's values; every message names the file and the key."""

    def __init__(self, path: str) -> None:
        self._path = path

    def hardware(self, document: Any) -> Hardware:
        document = self._flat(document)
        readers = self._readers()
        known = {*readers, "base"}
        unknown = [key for key in document if key not in known]
        if unknown:
            self._refuse(f"{shown(unknown[0])}: no such key; known are {', '.join(sorted(known))}")
        base = Hardware(name=Path(self._path).stem)
        if "base" in document:
            base = self._base(document["base"])
            base = replace(base, base=base.name)
        given = {"name": Path(self._path).stem} | {
            key: read(key, document[key]) for key, read in readers.items() if key in document
        }
        words = ("name", "topology", "low_bit_format")
        if not any(value for key, value in document.items() if key not in words):
            self._refuse("states no number of a device; give a base (as H200) or figures")
        found = replace(base, **given)
        return found if "nics" in given else _with_nics_of(found, base)

    def _flat(self, document: Any) -> dict[str, Any]:
        """The keys of a device; the shape that `layershard hardware NAME --json` prints is one."""
        if isinstance(document, dict) and "hardware" in document:
            extra = [key for key in document if key not in ("hardware", "schema_version")]
            if extra:
                self._refuse(f"{shown(extra[0])}: no key beside hardware, which has the device")
            document = document["hardware"]
            if isinstance(document, list):
                self._refuse(f"hardware: a list of {len(document)} devices; give one of them")
        if not isinstance(document, dict):
            self._refuse("a JSON object was expected")
        figures = document.get("figures", {})
        if not isinstance(figures, dict):
            self._refuse("figures: a JSON object was expected")
        both = [key for key in figures if key in document]
        if both:
            self._refuse(f"{shown(both[0])}: stands twice, once under figures")
        wrong = [key for key in figures if key not in LABELS]
        if wrong:
            self._refuse(f"figures: {shown(wrong[0])}: no such figure")
        return {key: value for key, value in document.items() if key != "figures"} | figures

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
            self._refuse(f"{key}: {shown(value)} is not {' or '.join(known)}")
        return value

    def _base(self, value: Any) -> Hardware:
        base = bundled_profile(value) if isinstance(value, str) else None
        if base is None:
            names = ", ".join(profile_names())
            self._refuse(f"base: {shown(value)} is no bundled profile; those are {names}")
        return base

    def _figure(self, key: str, value: Any) -> Figure | None:
        if value is None and key in MAY_BE_NULL:
            return None
        if not isinstance(value, dict):
            return Figure(self._number(key, value), "assumed", f"given in {self._path}")
        extra = [name for name in value if name not in ("value", "unit", "basis", "source")]
        if extra or "value" not in value:
            self._refuse(f"{key}: an object has value, basis and source, this one {shown(value)}")
        unit = UNITS.get(key, "")
        if value.get("unit", unit) != unit:
            self._refuse(f"{key}: unit {shown(value['unit'])} is not {shown(unit)}")
        return Figure(self._number(key, value["value"]), *self._standing(key, value))

    def _standing(self, key: str, value: dict[str, Any]) -> tuple[Basis, str]:
        basis = value.get("basis", "assumed")
        if basis not in get_args(Basis):
            self._refuse(f"{key}: basis {shown(basis)} is not one of {', '.join(get_args(Basis))}")
        return basis, self._text(f"{key}: source", value.get("source", f"given in {self._path}"))

    def _number(self, key: str, value: Any) -> float:
        wrong = wrong_with(key, value, in_a_file=True)
        if wrong is not None:
            self._refuse(f"{key}: {wrong}")
        return float(value)

    def _rates(self, key: str, column: str, values: list[Any]) -> tuple[float, ...]:
        least = LEAST_RATE if column == "bandwidths" else _LEAST_SECONDS
        rates = tuple(self._number(f"{key}: {column}", value) for value in values)
        if min(rates) < least:
            self._refuse(f"{key}: {column}: {shown(min(rates))} is below {least:g}: no device's")
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
                f"this one {shown(value)}"
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
            self._refuse(f"{key}: {shown(value)} is not a printable text")
        return value[:_MAX_TEXT]

    def _refuse(self, what: str) -> NoReturn:
        raise HardwareError(f"--hardware {self._path}: {what}")


def _with_nics_of(found: Hardware, base: Hardware) -> Hardware:
    """With as many NICs a device as the base has, where its node has fewer devices or more."""
    nics, devices = base.nics, found.devices_a_node
    if nics is None or devices == base.devices_a_node:
        return found
    each = nics.value / base.devices_a_node
    source = f"{each:g} a device, as {base.name} has: {nics.source}"
    return replace(found, nics=Figure(each * devices, "assumed", source))
