"""Every broken input ends in one message: no traceback, little work, under 200 MB.

Time is not asserted: it is the machine's. Work is: lines of Python run, and bytes read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from broken import CASES
from console import layershard
from work import Work

STEPS = 8_000_000
"""Of the largest files there are: 24 MB, of which 524,288 pairs of strings are read."""

BYTES_READ = 32 * 10**6
"""A file is read up to 24 MiB, and what modules the first command loads."""

HANG_S = 120
"""Only a hang takes so long: the slowest takes a second on a quick machine."""

SUPPORT = Path(__file__).parents[2] / "support"
PEAK_BYTES = 200 * 10**6
WHOLE_BYTES_READ = 64 * 10**6
"""That of a file and of all the modules that a process starts with."""

WHOLE = (
    "deepseek-ai/DeepSeek-V3 num_hidden_layers huge",
    "config.json is deep lists",
    "config.json is three hundred thousand empty lists",
    "config.json is three megabytes",
    "config.json is lists for eight megabytes",
    "config.json is texts for eight megabytes",
    "config.json is a wide character after eight megabytes",
    "config.json is nine megabytes",
    "config.json never ends",
    "header lists for eight megabytes",
    "header metadata for eight megabytes",
    "header a very long name",
    "header length 100 MB",
    "index is 25 megabytes",
    "index has lists for 24 megabytes",
    "index has tensors for 24 megabytes",
    "index has tensors of short names for 24 megabytes",
    "description has weights for 24 megabytes",
    "header tensors for eight megabytes",
    "index names 5000 files",
    "shard is a pipe",
    "plan --tokens 1e400",
    "--model /dev/zero",
    "exact offline",
)
"""Those run as processes of their own, the hungriest among them."""

MEASURED = """
import sys
from pathlib import Path
from work import bytes_read
from layershard_cli.main import run
try:
    run()
finally:
    status = Path("/proc/self/status").read_text()
    kib = status.partition("VmHWM:")[2].split()[0]
    print(bytes_read(), kib, file=sys.stderr)
"""
"""Says at the end how much it has read, and how much memory it took.

The kernel's account of a child starts with its parent's memory, so the process asks itself.
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_those_that_run_as_processes_are_among_the_two_hundred_cases() -> None:
    assert len(CASES) >= 200
    assert set(WHOLE) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_each_ends_in_one_message_after_little_work(name: str, tmp_path: Path) -> None:
    arguments = CASES[name](tmp_path)
    with Work(STEPS) as work:
        ended = layershard(*arguments)
    check(*ended)
    assert work.bytes_read < BYTES_READ


@pytest.mark.parametrize("name", WHOLE)
def test_the_hungriest_end_in_one_message_and_little_memory(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED, *CASES[name](tmp_path)]
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{SUPPORT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    message, _, measured = finished.stderr.rstrip("\n").rpartition("\n")
    check(finished.returncode, finished.stdout, message)
    read, kib = map(int, measured.split())
    assert read < WHOLE_BYTES_READ
    assert kib * 1024 < PEAK_BYTES


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
