"""The devices that the planner knows, and every number of one with its source."""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm_layershard.config import short
from vllm_layershard.errors import HardwareError
from vllm_layershard.estimate import DEFAULT, Hardware, profile, profile_names
from vllm_layershard.estimate.figure import UNITS, Figure
from vllm_layershard.estimate.hardware import BusTable, TimeTable
from vllm_layershard.planner.results.document import SCHEMA_VERSION


class HardwareResult(NamedTuple):
    """One device, or all that come with the package."""

    hardware: Hardware | tuple[Hardware, ...]

    def document(self) -> dict[str, Any]:
        """`layershard hardware --json`, with a name or without."""
        shown = self.hardware
        device = _device(shown) if isinstance(shown, Hardware) else [_device(one) for one in shown]
        return {"schema_version": SCHEMA_VERSION, "hardware": device}


def load_hardware(name: str) -> Hardware:
    """The profile of a device by its name, in any case, or the one in a FILE.json.

    Raises:
        HardwareError: none of that name; lists the known ones. Or a file that cannot be used.
    """
    if not isinstance(name, str):
        raise HardwareError(
            f"{short(name)} is no name; give a device such as 'H200' or a FILE.json"
        )
    return profile(name)


def list_hardware(name: str | None = None) -> HardwareResult:
    """Every profile that comes with the package, or the one of that name.

    Raises:
        HardwareError: none of that name, or a file that cannot be used.
    """
    if name is not None:
        return HardwareResult(load_hardware(name))
    return HardwareResult(tuple(profile(known) for known in profile_names()))


def device_of(hardware: str | Hardware | None) -> Hardware:
    """The device that is asked for; the default one where none is."""
    if isinstance(hardware, Hardware):
        return hardware
    return load_hardware(DEFAULT if hardware is None else hardware)


def _device(device: Hardware) -> dict[str, Any]:
    """Every number with unit, basis and source; null where nobody says."""
    return {
        "name": device.name,
        **({"base": device.base} if device.base else {}),
        "topology": device.topology,
        "low_bit_format": device.low_bit_format,
        "figures": {key: figure and _figure(key, figure) for key, figure in device.figures.items()},
        "bus": [_table(table, "bandwidths", table.bandwidths) for table in device.bus],
        "broadcast": [_table(table, "seconds", table.seconds) for table in device.broadcast],
    }


def _figure(key: str, figure: Figure) -> dict[str, Any]:
    return {
        "value": figure.value,
        "unit": UNITS.get(key, ""),
        "basis": figure.basis,
        "source": figure.source,
    }


def _table(table: BusTable | TimeTable, column: str, values: tuple[float, ...]) -> dict[str, Any]:
    return {
        "ranks": table.ranks,
        "sizes": list(table.sizes),
        column: list(values),
        "basis": table.basis,
        "source": table.source,
    }
