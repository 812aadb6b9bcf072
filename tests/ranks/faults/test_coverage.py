"""Every branch of what must not fail is tried, in one process: memory, meeting, report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUNTIME = "vllm_layershard/runtime"
MUST_NOT_FAIL = [
    f"{RUNTIME}/{name}.py"
    for name in (
        "piece",
        "shared_memory",
        "ranks/rendezvous",
        "ranks/handshake",
        "report",
        "report_file",
        "peer_memory/posix",
    )
]
TRIED_BY = [
    *(f"tests/ranks/faults/test_{name}.py" for name in ("failing_calls", "failing_store")),
    "tests/ranks/faults/test_branches.py",
    *(f"tests/pure/runtime/test_{name}.py" for name in ("report", "report_file", "report_faults")),
]


def coverage(place: Path, *arguments: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "coverage", *arguments],
        cwd=ROOT,
        env={**os.environ, "COVERAGE_FILE": str(place / "coverage")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.matrix(part="faults")
def test_no_line_and_no_branch_goes_untried(tmp_path):
    include = f"--include={','.join(MUST_NOT_FAIL)}"
    coverage(tmp_path, "run", "--branch", include, "-m", "pytest", "-q", *TRIED_BY)
    coverage(tmp_path, "report", "--show-missing", "--fail-under=100")


def test_nothing_is_left_out_of_the_count():
    """Ten lines may be, each with its reason; none is."""
    for path in MUST_NOT_FAIL:
        assert "no cover" not in (ROOT / path).read_text(), path
        assert "no branch" not in (ROOT / path).read_text(), path
