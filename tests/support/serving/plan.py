"""What the planner's command line says of the test model on two data-parallel ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.layout import TWO_RANKS, Layout


def planned(
    model: Path,
    layers: list[str],
    prefetch_step: int,
    layout: Layout = TWO_RANKS,
    placement: str = "round_robin",
    *,
    keep_first: bool = False,
    token_exchange: Sequence[str] = (),
) -> dict[str, Any]:
    """The document of `layershard plan --json` for the layout that a server has."""
    command = [
        str(Path(sys.executable).with_name("layershard")), "plan", "--model", str(model),
        *layout.planning, "--layers", ",".join(layers),
        "--prefetch-step", str(prefetch_step), "--placement", placement, "--json",
        *(["--keep-first"] if keep_first else []),
        *(["--token-exchange", ",".join(token_exchange)] if token_exchange else []),
    ]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


def planned_series(model: Path, layers: list[str], prefetch_step: int) -> dict[str, Any]:
    """The plan's series by name."""
    return {s["name"]: s for s in planned(model, layers, prefetch_step)["series"]}
