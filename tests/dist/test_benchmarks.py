"""The benchmarks run, and measure what gives the right numbers. What they measure is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def smoke(name: str, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / f"{name}.json"
    finished = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--smoke", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=300,  # seconds, unless the machine is busy
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode == 0, finished.stderr
    document = json.loads(file.read_text())
    assert document["benchmark"] == name
    assert {"processor", "cores", "system", "python", "versions"} <= document["machine"].keys()
    assert "torch" in document["machine"]["versions"]
    return document


def test_overlap_runs_and_everybody_computes_what_the_unsharded_stack_does(tmp_path):
    rows = smoke("overlap", tmp_path)["rows"]
    assert [(row["ranks"], row["fetch/compute"], row["step"]) for row in rows] == [
        (2, 0.5, 0),
        (2, 0.5, 1),
    ]
    for row in rows:
        assert row["correct"] == ["FSDP2", "first version", "layer sharding"]
        for name in ("bound", "planned", "first version", "FSDP2"):
            assert 0 < row[f"/ {name} low"] <= row[f"/ {name}"] <= row[f"/ {name} high"]


def test_overhead_runs(tmp_path):
    (row,) = smoke("overhead", tmp_path)["rows"]
    assert 0 < row["low_us"] <= row["pair_us"] <= row["high_us"]
