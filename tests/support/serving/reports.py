"""Reports: what the ranks of a running server say they hold, against the plan."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.layout import TWO_RANKS, Layout
from serving.plan import planned

DEADLINE_S = 30


def reports(directory: Path, layout: Layout) -> list[dict[str, Any]]:
    """Every rank's report, written after the last forward: they follow it within a second."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        ranks = range(layout.world_size)
        files = [directory / f"layershard-rank{rank}.json" for rank in ranks]
        found = [json.loads(file.read_text()) for file in files]
        series = [s for report in found for s in report["series"]]
        at_rest = all(s["waits"] == _moved(s) and s["forwards"] > 0 for s in series)
        if at_rest or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def _moved(series: dict[str, Any]) -> int:
    """How many weights moved, by the report itself."""
    moving: int = series["forwards"] - series["activation_forwards"]
    return moving * len(series["layer_ids"])


def _alike(directory: Path, layout: Layout) -> list[dict[str, Any]]:
    """The ranks' reports once all ranks of each group count the same forwards, as all have run."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = reports(directory, layout)
        counts: dict[tuple[str, tuple[int, ...]], set[tuple[int, int]]] = {}
        for series in (s for report in found for s in report["series"]):
            group = (series["name"], tuple(series["group_ranks"]))
            counted = (series["forwards"], series["activation_forwards"])
            counts.setdefault(group, set()).add(counted)
        if all(len(counted) == 1 for counted in counts.values()):
            return found
        assert time.monotonic() < deadline, f"ranks have run other forwards: {counts}"
        time.sleep(0.5)


def check_moved(directory: Path, layout: Layout, kinds: set[str]) -> list[dict[str, Any]]:
    """Forwards of just these kinds, `weights` and `activations`, have run; the ranks' reports.

    Every rank of a group counts as many of each. What moved is counted in its own kind, and of the
    other kind nothing did.
    """
    found = _alike(directory, layout)
    for report in found:
        for series in report["series"]:
            moving = series["forwards"] - series["activation_forwards"]
            counted = {"weights": moving, "activations": series["activation_forwards"]}
            moved = {"weights": series["weight_bytes"], "activations": series["activation_bytes"]}
            assert {kind for kind, forwards in counted.items() if forwards} == kinds
            assert {kind for kind, nbytes in moved.items() if nbytes} == kinds
            assert series["launches"] == series["waits"] == _moved(series)
            layer_bytes = series["replicated_bytes"] // len(series["layer_ids"])
            arriving = (len(series["layer_ids"]) - len(series["owned_layers"])) * layer_bytes
            if series["placement"] == "striped":
                arriving -= series["resident_bytes"]
            assert series["weight_bytes"] == moving * arriving
    return found


def check_reports(
    directory: Path,
    model: Path,
    layers: list[str],
    prefetch_step: int = 1,
    layout: Layout = TWO_RANKS,
    placement: str = "round_robin",
    *,
    keep_first: bool = False,
    token_exchange: Sequence[str] = (),
) -> None:
    """Owners and bytes measured by each rank equal, to the byte, those that the planner says.

    Tokens were exchanged before each product of a series of `token_exchange`, before others not.
    """
    document = planned(
        model,
        layers,
        prefetch_step,
        layout,
        placement,
        keep_first=keep_first,
        token_exchange=token_exchange,
    )
    plan = document["series"]
    for rank, report in enumerate(reports(directory, layout)):
        mine = {s["name"]: s for s in plan if s["pp_stage"] == layout.stage_of(rank)}
        assert {s["name"] for s in report["series"]} == set(mine)
        for series in report["series"]:
            says = mine[series["name"]]
            place = series["group_rank"]
            assert series["group_ranks"].index(rank) == place
            assert len(series["group_ranks"]) == says["group_size"]
            assert series["layer_ids"] == says["layer_ids"]
            assert series["replicated_bytes"] == says["replicated_bytes"]
            assert series["resident_bytes"] == says["resident_bytes"][place]
            assert series["slot_bytes"] == says["slot_bytes"]
            owned = [i for i, owner in zip(says["layer_ids"], says["owner"], strict=True)
                     if owner == place]  # fmt: skip
            assert series["owned_layers"] == owned
            assert series["placement"] == placement
            assert series["forwards"] > 0
            moved = series["forwards"] * len(says["layer_ids"])
            assert series["launches"] == series["waits"] == moved
            exchanged = moved if series["name"] in token_exchange else 0
            assert series["exchanges"] == exchanged
            assert series["exchanged_rows"] >= exchanged
            assert series["activation_forwards"] == series["activation_bytes"] == 0
