"""Result: what a benchmark found, with the machine and the versions, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("vllm-layershard", "torch", "vllm")


@dataclass(frozen=True, slots=True)
class Times:
    """Repeated measurements in one unit: their median, and how far they spread."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Times:
        """From the single values."""
        return cls(statistics.median(values), min(values), max(values), len(values))


def machine() -> dict[str, Any]:
    """Where and when this runs; `load`: how many processes wanted a core in the last minute."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0],
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def publish(
    benchmark: str,
    title: str,
    columns: Sequence[str],
    rows: Sequence[dict[str, Any]],
    json_file: Path | None,
) -> None:
    """Print the rows' `columns` as a table; write all they hold to `json_file`, if there is one."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in _numbers(rows) else "left")
    for row in rows:
        table.add_row(*(_shown(row[column]) for column in columns))
    Console(width=None if os.isatty(1) else 140).print(table)
    if json_file is not None:
        document = {"benchmark": benchmark, "machine": machine(), "rows": list(rows)}
        json_file.write_text(json.dumps(document, indent=1) + "\n")


def _numbers(rows: Sequence[dict[str, Any]]) -> set[str]:
    return {key for row in rows[:1] for key, value in row.items() if not isinstance(value, str)}


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and value < 100 else f"{value}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
