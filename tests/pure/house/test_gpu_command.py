"""The command beside a GPU: whose python, which files, what is written and when."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gpu import __main__ as command
from gpu import facts
from gpu.cases import lacking
from gpu.part import Part, parts_of
from gpu.runner import Runner
from gpu.table import MODULES

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("target", "what"), [("test-gpu", "tests"), ("bench-gpu", "bench")])
def test_it_is_run_by_the_machines_own_python_and_nothing_is_installed(target, what):
    """The environment of `make setup` has a torch for CPUs."""
    told = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target, "MACHINE_PYTHON=/machine/python3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    *before, started = told
    assert before == ["mkdir -p .cache"]
    assert f" /machine/python3 -m gpu {what} --rows .cache/" in started
    assert ".venv" not in started


@pytest.mark.parametrize("what", MODULES)
def test_every_file_with_a_part_is_in_the_table(what):
    listed, prefix = MODULES[what]
    (folder,) = {module.rpartition(".")[0] for module in listed}
    found = {
        f"{folder}.{path.stem}"
        for path in (ROOT / folder.replace(".", "/")).glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(prefix)
    }
    assert found == {*listed}


SMI = """#!/bin/sh
echo "$@" > {asked}
echo "NVIDIA H200, 570.124, Disabled, Default, 143771 MiB, 700.00 W, 1980 MHz"
"""


def test_the_machines_row_names_driver_mig_and_compute_mode(tmp_path, monkeypatch):
    """An nvidia-smi that answers as the real one does, field by field as it is asked."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(SMI.format(asked=tmp_path / "asked"))
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert facts.facts()["nvidia_smi"] == [
        {
            "name": "NVIDIA H200",
            "driver": "570.124",
            "mig": "Disabled",
            "compute_mode": "Default",
            "memory": "143771 MiB",
            "power_limit": "700.00 W",
            "max_sm_clock": "1980 MHz",
        }
    ]
    query, form = (tmp_path / "asked").read_text().split()
    assert form == "--format=csv,noheader"
    assert query.removeprefix("--query-gpu=").split(",") == [
        *("name", "driver_version", "mig.mode.current", "compute_mode"),
        *("memory.total", "power.limit", "clocks.max.sm"),
    ]


ODD_SMI = """#!/bin/sh
printf 'NVIDIA \\377, 570.124, Disabled, Default, 143771 MiB, 700.00 W, 1980 MHz\\n'
"""
SLOW_SMI = """#!/bin/sh
echo $$ > {asked}
exec sleep 3600
"""


def facts_beside(smi: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    (folder / "nvidia-smi").write_text(smi)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests/support'}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = facts.asked(**options)
    assert found["gpus"] == []
    assert found["torch"] == facts.torch.__version__
    return found


def test_a_byte_that_is_no_text_loses_no_fact(tmp_path, monkeypatch):
    found = facts_beside(ODD_SMI, tmp_path, monkeypatch)
    assert found["nvidia_smi"][0]["name"] == "NVIDIA \ufffd"
    assert "failed" not in found


def test_facts_that_take_too_long_lose_no_others(tmp_path, monkeypatch):
    """The limit passes as soon as nvidia-smi, which does not answer, has been asked."""
    asked = tmp_path / "asked"

    def stopped() -> bool:
        return asked.exists() and asked.read_text() != ""

    found = facts_beside(SLOW_SMI.format(asked=asked), tmp_path, monkeypatch, stopped=stopped)
    assert found["nvidia_smi"] == "unknown"
    assert found["failed"].startswith("the machine was not described")


def test_a_description_that_cannot_be_started_leaves_the_facts_unknown(monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(facts.subprocess, "Popen", fails)
    found = facts.asked()
    assert facts.how_many_gpus(found) is None
    assert found["failed"].startswith("no process could be started: [Errno 11]")


def test_a_fact_that_raises_is_told_as_unknown(monkeypatch):
    def broken() -> bool:
        raise RuntimeError("the driver is of another version")

    monkeypatch.setattr(facts.torch.cuda, "is_available", broken)
    found = facts.facts()
    assert found["gpus"] == "unknown (RuntimeError: the driver is of another version)"
    assert facts.how_many_gpus(found) is None
    assert found["torch"] == facts.torch.__version__


def test_a_run_goes_on_where_nobody_knows_the_gpus(monkeypatch, capsys):
    """What needs one is tried; nothing says that there is none."""
    ran: list[int | None] = []

    class Trying(Runner):
        def run(self, _: Any) -> None:
            ran.append(self._gpus)

    unknown = {"gpus": "unknown", "failed": "the machine was not described within 90 s"}
    monkeypatch.setattr(command, "Runner", Trying)
    monkeypatch.setattr(command, "asked", lambda **_: unknown)
    monkeypatch.setattr(sys, "argv", ["gpu", "tests"])
    assert command.main() == 0
    assert ran == [None]
    assert lacking(1, None) is None
    assert lacking(2, None) == "needs 2 GPUs, and nobody knows how many are here"
    said = capsys.readouterr().err
    assert "its devices are not known: the machine was not described within 90 s" in said
    assert "none" not in said


def test_the_file_has_each_row_as_soon_as_it_is_told(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    seen: list[list[dict[str, Any]]] = []

    class Looking:
        """Reads the file after a row of its own."""

        def __init__(self, write: Any, _: int, **__: Any) -> None:
            self._write = write
            self.tally: Counter[str] = Counter()
            self.lacked_time = False

        def run(self, _: Any) -> None:
            self._write({"n": 1})
            seen.append([json.loads(line) for line in rows.read_text().splitlines()])

    monkeypatch.setattr(command, "Runner", Looking)
    monkeypatch.setattr(command, "asked", lambda **_: {"gpus": []})
    monkeypatch.setattr(sys, "argv", ["gpu", "tests", "--rows", str(rows)])
    assert command.main() == 1
    assert seen == [[{"machine": {"gpus": []}, "run": "tests"}, {"n": 1}]]


WAITING = """
import pathlib, time

def test_waits(rows):
    rows({"until": "%s"})
    while not pathlib.Path("%s").exists():
        time.sleep(0.05)
"""


def test_a_row_is_told_while_its_part_still_runs(tmp_path, monkeypatch):
    """The part ends when its row has arrived, and would be ended as one that hangs else."""
    until = tmp_path / "until"
    (tmp_path / "waiting.py").write_text(WAITING % (until, until))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}:{ROOT / 'tests/support'}")
    (part,) = parts_of(["waiting"], "test_")
    assert isinstance(part, Part)
    told: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        told.append(row)
        if "until" in row:
            Path(row["until"]).touch()

    started_s = time.monotonic()
    Runner(tell, 1).run([part])
    assert [row.get("outcome", "row") for row in told] == ["row", "passed"]
    assert time.monotonic() - started_s < part.limit_s
