"""Every broken input ends in one message: no traceback, under a second, under 200 MB."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from broken import CASES
from yardstick import yard_seconds

from layershard_cli import main

SECONDS = 1.0
YARDS = 4
"""On a machine too slow for a second, as many times what some plain Python takes there."""

HERE = Path(__file__).parent
BYTES = 200 * 10**6

WHOLE = (
    "deepseek-ai/DeepSeek-V3 num_hidden_layers huge",
    "config.json is deep lists",
    "config.json is three hundred thousand empty lists",
    "config.json is three megabytes",
    "config.json never ends",
    "header lists for eight megabytes",
    "header metadata for eight megabytes",
    "header a very long name",
    "header length 100 MB",
    "index is 25 megabytes",
    "index has lists for 24 megabytes",
    "index has tensors for 24 megabytes",
    "index names 5000 files",
    "shard is a pipe",
    "plan --tokens 1e400",
    "--model /dev/zero",
    "exact offline",
)
"""Those run as processes of their own, the hungriest among them."""

MEASURED = f"""
import sys, time
from yardstick import yard_seconds
from pathlib import Path
from layershard_cli.main import run
try:
    run()
finally:
    status = Path("/proc/self/status").read_text()
    kib = status.partition("VmHWM:")[2].split()[0]
    took = time.process_time()
    print(took, 0 if took < {SECONDS} else yard_seconds(), kib, file=sys.stderr)
"""
"""Says at the end how much processor time and memory it took.

The kernel's account of a child starts with its parent's memory, so the process asks itself.
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_there_are_two_hundred_of_them() -> None:
    assert len(CASES) >= 200
    assert set(WHOLE) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_one_message(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = CASES[name](tmp_path)
    argv, sys.argv = sys.argv, ["layershard", *arguments]
    gc.freeze()  # the garbage collector walks what tests have left behind, a fresh process has none
    started = time.process_time()
    try:
        with pytest.raises(SystemExit) as ended:
            main.run()
    finally:
        sys.argv = argv
        gc.unfreeze()
    seconds = time.process_time() - started
    written = capsys.readouterr()
    check(ended.value.code, written.out, written.err)
    assert seconds < SECONDS or seconds < YARDS * yard_seconds()


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_process(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED, *CASES[name](tmp_path)]
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    message, _, measured = finished.stderr.rstrip("\n").rpartition("\n")
    check(finished.returncode, finished.stdout, message)
    seconds, yard, kib = measured.split()
    assert float(seconds) < SECONDS or float(seconds) < YARDS * float(yard)
    assert int(kib) * 1024 < BYTES


def check(code: object, out: str, err: str) -> None:
    """One message on stderr, nothing on stdout, nothing that a terminal would act on."""
    assert code in (2, 3), (code, err)
    assert out == ""
    assert "Traceback" not in err
    lines = err.splitlines()
    if lines and lines[0].startswith("Usage:"):
        assert [line for line in lines if line.startswith("Error: ")] == lines[-1:]
    else:
        assert len(lines) == 1, err
        assert err.startswith("layershard: ")
    assert all(line.isprintable() for line in lines)
    assert len(err) < 20_000
