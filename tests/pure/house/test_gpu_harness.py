"""The runner of tests and benchmarks on a GPU outlives every part, and starts none too late."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpu import __main__ as command
from gpu.cases import calls_of, cases, lacking, needs
from gpu.part import Part, Process, Unread, parts_of
from gpu.report import Reader, Report
from gpu.runner import Runner
from gpu.table import MODULES

ROOT = Path(__file__).parents[3]

ODD = """
import os, signal, time
from gpu.cases import apart, cases, needs

@cases("n", [1, 2, 3])
def test_second_raises(n, rows):
    rows({"n": n})
    assert n != 2, "two"

@cases("n", [1, 2])
def test_first_crashes(n):
    if n == 1:
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

@cases("n", [1, 2])
def test_first_hangs(n):
    if n == 1:
        if os.fork() == 0:
            time.sleep(3600)
        time.sleep(3600)

def test_dies_at_its_end():
    import atexit
    atexit.register(os._exit, 7)

@apart
@cases("n", [1, 2])
def test_apart(n, rows):
    rows({"process": os.getpid()})

def test_ends_early():
    os._exit(0)

def test_passes(tmp_path):
    assert tmp_path.is_dir()

@needs(gpus=2)
def test_of_two():
    raise AssertionError("it is not called")
"""


class FalseClock:
    """Time passes as it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, _: float) -> None:
        time.sleep(0.05)


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    path = [str(tmp_path), str(ROOT), str(ROOT / "tests/support")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    found = parts_of(["odd"], "test_")
    return {one.function: one for one in found if isinstance(one, Part)}


def ran(parts: list[Any], gpus: int = 1, **options: Any) -> tuple[Runner, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    made = Runner(rows.append, gpus, **options)
    made.run(parts)
    return made, rows


def outcomes(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (row.get("case", ""), row["outcome"], row.get("how", ""))
        for row in rows
        if "outcome" in row
    ]


def test_a_case_that_raises_leaves_the_others_to_another_process(odd):
    made, rows = ran([odd["test_second_raises"], odd["test_passes"]])
    assert outcomes(rows) == [
        ("n=1", "passed", ""),
        ("n=2", "failed", "raised"),
        ("n=3", "passed", ""),
        ("", "passed", ""),
    ]
    (failed,) = (row for row in rows if row.get("outcome") == "failed")
    assert failed["why"] == "AssertionError: two"
    assert "odd.py" in failed["trace"]
    assert [row["n"] for row in rows if "n" in row] == [1, 2, 3]
    assert made.tally == {"passed": 3, "failed": 1}


def test_a_crash_is_told_with_its_signal_and_its_last_words(odd):
    _, rows = ran([odd["test_first_crashes"]])
    assert outcomes(rows) == [("n=1", "failed", "crashed"), ("n=2", "passed", "")]
    assert rows[0]["why"].startswith("signal SIGSEGV; last words: about to crash")


def test_a_part_that_hangs_is_ended_with_all_it_started(odd, monkeypatch):
    clock = FalseClock()
    started: list[Process] = []

    def start(asked: Part, first: int) -> Process:
        started.append(Process(asked, first))
        return started[-1]

    def sleep(_: float) -> None:
        time.sleep(0.05)
        if not started[0].ended() and hung():  # it has begun, and says no more
            clock.now_s += odd["test_first_hangs"].limit_s

    def hung() -> bool:
        """Whether it has started the process that outlives it."""
        group = str(started[0]._process.pid)
        members = subprocess.run(["pgrep", "-g", group], capture_output=True, check=False)
        return len(members.stdout.split()) > 1

    monkeypatch.setattr(clock, "sleep", sleep)
    _, rows = ran([odd["test_first_hangs"]], clock=clock, start=start)
    assert outcomes(rows) == [("n=1", "failed", "hung"), ("n=2", "passed", "")]
    assert not hung()


def test_a_process_that_dies_at_its_end_has_failed(odd):
    _, rows = ran([odd["test_dies_at_its_end"]])
    assert outcomes(rows) == [("", "passed", ""), ("its end", "failed", "crashed")]
    assert rows[-1]["why"].startswith("exit code 7")


def test_a_process_that_ends_within_a_case_has_failed_whatever_its_exit_code(odd):
    _, rows = ran([odd["test_ends_early"]])
    assert outcomes(rows) == [("", "failed", "crashed")]


def test_cases_that_are_apart_have_a_process_each(odd):
    _, rows = ran([odd["test_apart"]])
    assert outcomes(rows) == [("n=1", "passed", ""), ("n=2", "passed", "")]
    assert len({row["process"] for row in rows if "process" in row}) == 2


def test_no_part_starts_after_minute_7(odd):
    """Each process takes 180 seconds of the false clock: the third begins at 360, and no fourth."""
    clock = FalseClock()

    def start(asked: Part, first: int) -> Process:
        clock.now_s += 180.0
        return Process(asked, first)

    many = [odd["test_passes"]] * 3 + [odd["test_second_raises"]]
    made, rows = ran(many, clock=clock, start=start)
    assert outcomes(rows)[:3] == [("", "passed", "")] * 3
    assert outcomes(rows)[3:] == [(f"n={n}", "not run", "") for n in (1, 2, 3)]
    assert "minute 7" in rows[-1]["why"]
    assert made.lacked_time
    assert made.tally == {"passed": 3, "not run": 3}


def test_the_minutes_count_from_the_start_of_the_command(odd, monkeypatch):
    """What is asked of the machine before any part takes 421 seconds of the false clock."""
    clock = FalseClock()
    rows: list[dict[str, Any]] = []

    def asked(**_: Any) -> dict[str, Any]:
        clock.now_s += 421.0
        return {"gpus": ["one"]}

    monkeypatch.setattr(command, "asked", asked)
    monkeypatch.setattr(command.Output, "row", lambda _, row: rows.append(row))
    monkeypatch.setitem(MODULES, "tests", (("odd",), "test_passes"))
    monkeypatch.setattr(sys, "argv", ["gpu", "tests"])
    assert command.main(clock=clock) == 1
    assert outcomes(rows) == [("", "not run", "")]
    assert "minute 7" in rows[0]["why"]
    assert rows[0]["at_s"] == 421.0


def test_the_command_begins_before_torch_is_imported():
    """Only `gpu` itself, which has the time, is imported ahead of it."""
    told = "import sys, gpu; print(gpu.BEGAN_S > 0, 'torch' in sys.modules)"
    path = str(ROOT / "tests/support")
    done = subprocess.run(
        [sys.executable, "-c", told],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False"]
    assert (ROOT / "tests/support/gpu/__main__.py").read_text().endswith("main(BEGAN_S))\n")


def test_a_process_that_cannot_be_started_fails_its_part_alone(odd):
    def start(asked: Part, first: int) -> Process:
        if asked is odd["test_second_raises"]:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return Process(asked, first)

    made, rows = ran([odd["test_second_raises"], odd["test_passes"]], start=start)
    assert outcomes(rows) == [
        ("n=1", "failed", "not started"),
        ("n=2", "not run", ""),
        ("n=3", "not run", ""),
        ("", "passed", ""),
    ]
    assert "could not be started: [Errno 11] Resource temporarily unavailable" in rows[0]["why"]
    assert made.tally == {"failed": 1, "not run": 2, "passed": 1}


def test_what_still_runs_at_minute_9_is_cut_off(odd, monkeypatch):
    clock = FalseClock()
    monkeypatch.setattr(clock, "sleep", lambda _: setattr(clock, "now_s", clock.now_s + 10.0))
    hangs = Part("odd", "test_first_hangs", cases=("n=1", "n=2"), limit_s=1e9)
    _, rows = ran([hangs], clock=clock)
    assert outcomes(rows) == [("n=1", "failed", "cut off"), ("n=2", "not run", "")]


def test_what_cannot_run_is_not_run_and_not_passed(odd):
    made, rows = ran([odd["test_of_two"], odd["test_passes"]], gpus=0)
    assert [row["why"] for row in rows] == ["needs a CUDA device"] * 2
    assert made.tally == {"not run": 2}
    assert lacking(2, 1) == "needs 2 GPUs, and 1 is here"
    assert lacking(1, 1) is None


def test_a_module_that_cannot_be_read_is_a_failure_and_stops_nothing(odd):
    found = parts_of(["there_is_none", "odd"], "test_p")
    assert isinstance(found[0], Unread)
    made, rows = ran(found)
    assert [row["outcome"] for row in rows] == ["failed", "passed"]
    assert "there_is_none" in rows[0]["why"]
    assert made.tally == {"passed": 1, "failed": 1}


def test_a_process_that_never_comes_to_a_case_is_started_once(odd):
    missing = Part("odd", "test_there_is_none", cases=("a", "b", "c"))
    _, rows = ran([missing])
    assert outcomes(rows) == [
        ("a", "failed", "crashed"),
        ("b", "not run", ""),
        ("c", "not run", ""),
    ]
    assert "AttributeError" in rows[0]["why"]


def test_cases_are_called_as_pytest_calls_them():
    @cases("a, b", [(1, 2), (3, 4)])
    @cases("c", ["x", "y"])
    @needs(2)
    def function(a, b, c):
        raise AssertionError("only its cases are read, and nothing calls it")

    assert calls_of(function) == [
        {"c": c, "a": a, "b": b} for c in ("x", "y") for a, b in ((1, 2), (3, 4))
    ]


def test_half_a_line_is_read_when_it_is_whole(tmp_path):
    report, reader = Report(tmp_path / "rows"), Reader(tmp_path / "rows")
    assert reader.rows() == []
    report({"n": 1})
    with (tmp_path / "rows").open("a") as stream:
        stream.write('{"n"')
        stream.flush()
        assert reader.rows() == [{"n": 1}]
        stream.write(": 2}\n")
    assert reader.rows() == [{"n": 2}]


BLOCKED = """
import sys

BLOCKED = {"vllm", "vllm_ascend", "pydantic", "pytest", "numpy", "rich", "typer"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize("what", ["tests", "bench"])
def test_the_command_needs_torch_alone_and_says_what_was_not_run(what, tmp_path):
    """Every process of the run has the blocker: it is the `sitecustomize` of this interpreter.

    No CUDA device is shown to them, so that all who need one say so on every machine.
    """
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "tests/support")])
    finished = subprocess.run(
        [sys.executable, "-m", "gpu", what, "--rows", str(tmp_path / "rows.jsonl")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert finished.returncode == 1, finished.stderr
    assert "needs a CUDA device, and this machine has none" in finished.stderr.splitlines()[-1]
    assert (tmp_path / "rows.jsonl").read_text() == finished.stdout
    first, *rows, last = map(json.loads, finished.stdout.splitlines())
    assert {"torch", "cuda", "nccl", "gpus", "nvidia_smi", "python"} <= first["machine"].keys()
    assert first["machine"]["gpus"] == []
    needing = [row for row in rows if row.get("why", "").startswith("needs a CUDA device")]
    assert {row["outcome"] for row in needing} == {"not run"}
    assert last["counts"]["not run"] == len(needing)
    assert last["counts"]["failed"] == 0
    assert last["counts"]["passed"] == len(rows) - len(needing)
