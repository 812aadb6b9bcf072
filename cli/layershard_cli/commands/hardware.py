"""`layershard hardware`: the profiles, and every number of one with its basis and source."""

from __future__ import annotations

from typing import Annotated

import typer

from layershard_cli.flags import AsJson
from layershard_cli.output import emit, emit_json
from vllm_layershard.estimate import Hardware
from vllm_layershard.estimate.figure import LABELS, UNITS
from vllm_layershard.planner.hardware import list_hardware


def hardware_command(
    name: Annotated[
        str | None,
        typer.Argument(help="A profile's name, or a FILE.json.  [default: list all]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The devices that the planner knows, or every number of one with its source.

    Example: layershard hardware H200
    """
    result = list_hardware(name)
    if as_json:
        emit_json(result.document())
    elif isinstance(result.hardware, Hardware):
        _print_one(result.hardware)
    else:
        _print_all(result.hardware)


def _print_all(devices: tuple[Hardware, ...]) -> None:
    first = max(len(device.name) for device in devices) + 1
    emit(
        f"{'device':{first}}{'memory':>12}{'TB/s':>7}{'bf16':>7}{'8 bit':>7}{'NICs':>6}{'link':>7}"
        f"{'between':>9}"
    )
    for device in devices:
        emit(
            f"{device.name:{first}}{_in(device, 'memory_bytes', 2**30):>8} GiB"
            f"{_in(device, 'memory_bandwidth', 1e12):>7}{_in(device, 'bf16', 1e12):>7}"
            f"{_in(device, 'low_bit', 1e12):>7}{_in(device, 'nics', 1):>6}"
            f"{_in(device, 'intra_node', 1e9):>7}{_in(device, 'inter_node', 1e9):>9}"
        )
    emit("memory: what a process can allocate; bf16 and 8 bit: dense TFLOP/s; NICs: of a node")
    emit("link within a node, and of one NIC between nodes: GB/s one way; - is unknown")
    emit("layershard hardware NAME shows each number's basis and source")


def _print_one(device: Hardware) -> None:
    emit(f"{device.name} (broadcasts without a table: {device.topology})")
    for key, figure in device.figures.items():
        if figure is None:
            emit(f"  {LABELS[key]}: -")
        else:
            unit = UNITS.get(key)
            said = f"{figure.value:,.6g}" if abs(figure.value) < 1e6 else f"{figure.value:,.0f}"
            said += f" {unit}" if unit else ""
            emit(f"  {LABELS[key]}: {said} ({figure.basis}: {figure.source})")
    for bus in device.bus:
        emit(f"  bus bandwidth among {bus.ranks} devices ({bus.basis}: {bus.source})")
        for size, rate in zip(bus.sizes, bus.bandwidths, strict=True):
            emit(f"    {size:,} bytes: {rate / 1e9:,.1f} GB/s")
    for table in device.broadcast:
        emit(f"  broadcast over {table.ranks} ranks ({table.basis}: {table.source})")
        for size, seconds in zip(table.sizes, table.seconds, strict=True):
            emit(f"    {size:,} bytes: {seconds * 1e6:,.1f} us")


def _in(device: Hardware, key: str, unit: float) -> str:
    figure = device.figures[key]
    return "-" if figure is None else f"{figure.value / unit:,.4g}"
