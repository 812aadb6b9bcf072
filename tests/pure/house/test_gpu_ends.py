"""A run on a GPU that ends early, or whose rows go nowhere: the rows that there are stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
HANG_S = 120

HELD = """
import os, pathlib, signal, time

from forked import forked

def test_a_first_one():
    pass

def test_b_is_held(rows):
    ranks = [forked(signal.pause) for _ in range(2)]
    for rank in ranks:
        rank.start()
    rows({"process": os.getpid(), "ranks": [rank.pid for rank in ranks]})
    time.sleep(3600)

def test_c_is_never_run():
    raise AssertionError("the run has ended")
"""
COMMAND = """
import sys
import gpu.__main__ as command
from gpu.table import MODULES

command.asked = lambda **_: {"gpus": [{"name": "a stand-in"}]}
MODULES["tests"] = (("held",), "test_")
sys.exit(command.main())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "command.py").write_text(COMMAND)
    path = [str(tmp_path), str(ROOT), str(ROOT / "tests/support")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""}


def run(*arguments: str, environment: dict[str, str], **options: Any) -> Any:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        check=False,
        text=True,
        timeout=HANG_S,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heed_all() -> None:
    """These tests may run where a shell has them ignore some."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def begun(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """The command, which runs on."""
    return subprocess.Popen(
        words,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_all,
    )


def wait_for_end(processes: list[int]) -> None:
    until = time.monotonic() + HANG_S
    for process in processes:
        while Path("/proc", str(process)).exists():
            assert time.monotonic() < until, "it outlives the runner"
            time.sleep(0.05)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_part_and_the_summary_is_written(number, environment, tmp_path):
    words = [str(tmp_path / "command.py"), "tests", "--rows", str(tmp_path / "rows")]
    with begun([sys.executable, *words], environment) as started:
        assert started.stdout is not None
        held = next(row for row in map(json.loads, started.stdout) if "process" in row)
        started.send_signal(number)
        _, said = started.communicate(timeout=HANG_S)
    assert started.returncode == 1
    *_, first, mine, cut, left, last = rows_of(tmp_path / "rows")
    assert (first["outcome"], mine) == ("passed", held)
    assert (cut["outcome"], cut["how"]) == ("failed", "cut off")
    assert f"{number.name} ended the run" in cut["why"]
    assert (left["outcome"], left["why"]) == ("not run", f"{number.name} ended the run")
    assert last["counts"] == {"passed": 1, "failed": 1, "not run": 1}
    assert last["stopped"] == number.name
    assert f"ended by {number.name}" in said.splitlines()[-1]
    assert not Path("/proc", str(held["process"])).exists()
    wait_for_end(held["ranks"])


@pytest.fixture
def held(environment, tmp_path):
    """The command in its second part, which started as `nohup` starts it, and that part's row."""
    words = ["nohup", sys.executable, str(tmp_path / "command.py"), "tests"]
    with begun(words, environment) as started:
        assert started.stdout is not None
        yield started, next(row for row in map(json.loads, started.stdout) if "process" in row)
        started.kill()


def test_a_signal_that_is_ignored_at_the_start_stays_ignored(held):
    """Of signals that both wait Python handles SIGHUP first."""
    started, _ = held
    for number in (signal.SIGHUP, signal.SIGTERM):
        started.send_signal(number)
    rows, _ = started.communicate(timeout=HANG_S)
    assert json.loads(rows.splitlines()[-1])["stopped"] == "SIGTERM"


def test_a_part_and_its_ranks_end_with_their_runner(held):
    started, row = held
    started.kill()
    wait_for_end([row["process"], *row["ranks"]])


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("missing/rows.jsonl", "No such file or directory"),
        (".", "Is a directory"),
        ("/dev/full", "No space left on device"),
    ],
)
def test_a_file_that_takes_no_rows_is_refused_in_one_line(rows, why, environment, tmp_path):
    where = tmp_path / rows
    command = str(tmp_path / "command.py")
    done = run(command, "tests", "--rows", str(where), environment=environment)
    assert done.returncode == 2
    assert done.stderr == f"gpu: --rows {where}: {why}; name a file to be written\n"
    assert done.stdout == ""


def test_a_name_that_no_part_has_is_refused(environment, tmp_path):
    command = str(tmp_path / "command.py")
    done = run(command, "tests", "--only", "b_is_hold", environment=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu: --only b_is_hold: no part has this in its name:\n")
    assert "  held::test_b_is_held\n" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("has_file", [True, False])
def test_rows_are_in_the_file_where_stdout_is_full(has_file, environment, tmp_path):
    file = ["--rows", str(tmp_path / "rows")] if has_file else []
    with Path("/dev/full").open("w") as full:
        arguments = [str(tmp_path / "command.py"), "tests", "--only", "a_first", *file]
        done = run(*arguments, environment=environment, stdout=full)
    assert done.returncode == (0 if has_file else 1)
    assert "gpu: stdout has no more rows: No space left on device\n" in done.stderr
    assert done.stderr.splitlines()[-1] == "gpu: tests: 1 passed, 0 failed, 0 not run"
    if has_file:
        assert rows_of(tmp_path / "rows")[-1]["counts"]["passed"] == 1


def test_rows_are_in_the_file_where_their_reader_is_gone(environment, tmp_path):
    read, written = os.pipe()
    os.close(read)
    arguments = [str(tmp_path / "command.py"), "tests", "--only", "a_first"]
    done = run(
        *arguments, "--rows", str(tmp_path / "rows"), environment=environment, stdout=written
    )
    os.close(written)
    assert done.returncode == 0, done.stderr
    assert "Broken pipe" in done.stderr
    assert "Traceback" not in done.stderr
    assert rows_of(tmp_path / "rows")[-1]["counts"]["passed"] == 1


def test_a_file_that_fills_up_loses_no_row_of_stdout(environment, tmp_path):
    """The limit of a file's size stands for a disk that fills up."""
    command = str(tmp_path / "command.py")
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["-c", limited, command, "tests", "--only", "a_first"]
    done = run(*arguments, "--rows", str(tmp_path / "rows"), environment=environment)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["run"] == "tests"
    assert "rows has no more rows: File too large" in done.stderr
