"""Every system call of a report fails, once and for good: no half report, draft or descriptor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from failing import Outcome, each_fault
from vllm_layershard.errors import ConfigError
from vllm_layershard.runtime import report, report_file
from vllm_layershard.runtime.report import Report
from vllm_layershard.runtime.report_file import ReportFile

MODULES = (report, report_file)


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("former", ["none", "a dead server's", "a link"])
def test_whatever_fails_a_report_is_whole_or_the_former_one(tmp_path, former, for_good):
    directory = tmp_path / "reports"
    path = directory / "layershard-rank0.json"
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("precious")
    before = {"none": None, "a link": None}.get(former, json.dumps({"rank": "former"}))

    def act() -> None:
        ReportFile(str(directory), 0).prepare()
        mine = Report(str(directory), 0, [], {})
        mine.write()
        mine.write()

    def set_up() -> None:
        directory.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if former == "a link":
            path.symlink_to(elsewhere)
        elif before is not None:
            path.write_text(before)
        (directory / "layershard-rank0.77-0a.tmp").write_text("of a dead server")

    def after(outcome: Outcome) -> None:
        ended_well = not outcome.told
        if for_good:
            ReportFile(str(directory), 0).prepare()
        drafts = [file for file in os.listdir(directory) if str(os.getpid()) in file]
        assert not drafts, "drafts are left"
        if path.is_symlink() or not path.exists():
            assert not ended_well
        else:
            written = path.read_text()
            said = json.loads(written)["rank"]
            assert said == 0 if ended_well else said in (0, "former")
        assert elsewhere.read_text() == "precious"
        set_up()

    set_up()
    failed = each_fault(MODULES, act, (ConfigError,), after, for_good=for_good)
    assert failed >= {"makedirs", "open", "lockf", "write", "replace", "unlink", "close", "listdir"}


WRITER = """
import os, sys
from vllm_layershard.runtime.report import Report
report = Report(sys.argv[1], 0, [], {})
report.write()
print("ready", flush=True)
os.read(0, 1)
"""


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[int]:
    """The number of a process that writes rank 0's report there."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.communicate("x")


@pytest.mark.parametrize("for_good", [False, True])
def test_whatever_fails_another_servers_name_is_told_or_that_it_is_not_known(
    tmp_path, for_good, other_server
):
    """Where the lock cannot be asked for, or the file not opened, it counts as nobody's."""
    said = set()

    def act() -> None:
        try:
            ReportFile(str(tmp_path), 0).prepare()
        except ConfigError as error:
            said.add(str(error).partition("which runs (")[2].partition(")")[0])

    each_fault(MODULES, act, (), lambda _: None, for_good=for_good)
    assert said > {f"process {other_server} on '{os.uname().nodename}'", "its process is not known"}
