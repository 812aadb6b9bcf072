"""A report's file has one writer, leaves no draft behind, and follows no link."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import pytest

from vllm_layershard.errors import ConfigError
from vllm_layershard.runtime import report_file
from vllm_layershard.runtime.report import Report
from vllm_layershard.runtime.report_file import ReportFile

WRITER = """
import os, sys
from vllm_layershard.errors import ConfigError
from vllm_layershard.runtime import report_file
from vllm_layershard.runtime.report import Report
def full(fd, data):
    raise OSError(28, "No space left on device")
report, write_all = Report(sys.argv[1], 0, [], {}), report_file._write_all
report.write()
print("ready", flush=True)
while told := os.read(0, 1):
    report_file._write_all = write_all if told == b"w" else full
    try:
        report.write()
    except ConfigError:
        pass
    print("ready", flush=True)
"""


class Server:
    """A process that writes rank 0's report; it tries again, or fails to, when it is told so."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready()

    def ready(self) -> None:
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, what: Literal["write", "fail"]) -> None:
        self.process.stdin.write(what[0])
        self.process.stdin.flush()
        self.ready()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.end()


def said_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "layershard-rank0.json").read_text())


def test_the_document_names_its_process(tmp_path, server):
    hostname = os.uname().nodename
    assert said_of(tmp_path)["process"] == {"hostname": hostname, "pid": server.process.pid}


@pytest.mark.parametrize("stopped", [False, True])
def test_what_another_living_server_writes_is_refused_by_its_process(tmp_path, server, stopped):
    if stopped:
        server.process.send_signal(signal.SIGSTOP)
    report, file = Report(str(tmp_path), 0, [], {}), ReportFile(str(tmp_path), 0)
    for act in (file.prepare, report.write):
        with pytest.raises(ConfigError) as refused:
            act()
        assert str(refused.value) == (
            f"layer_sharding.report_dir = '{tmp_path}': the report of rank 0 is written there by "
            f"another server, which runs (process {server.process.pid} on "
            f"'{os.uname().nodename}'); give each server a directory of its own"
        )
    assert said_of(tmp_path)["process"]["pid"] == server.process.pid
    ReportFile(str(tmp_path), 1).prepare()  # the other ranks of a deployment are in nobody's way
    assert [file.name for file in tmp_path.iterdir()] == ["layershard-rank0.json"]


def test_a_writer_holds_its_file_from_one_time_to_the_next(tmp_path, server):
    for what in ("write", "fail", "write", "fail"):
        server.tell(what)
        with pytest.raises(ConfigError, match="written there by another server"):
            ReportFile(str(tmp_path), 0).prepare()


def test_a_dead_servers_report_is_replaced_and_its_drafts_go(tmp_path, server):
    server.end()
    (tmp_path / "layershard-rank0.77-140001.tmp").write_text("half")
    (tmp_path / "layershard-trial.77-0a.tmp").touch()
    kept = ("layershard-rank1.77-0a.tmp", "layershard-rank0.json.tmp", "notes-rank0.77-0a.tmp")
    for name in kept:
        (tmp_path / name).write_text("another's")
    report = Report(str(tmp_path), 0, [], {})
    ReportFile(str(tmp_path), 0).prepare()
    report.write()
    assert said_of(tmp_path)["process"]["pid"] == os.getpid()
    assert {file.name for file in tmp_path.iterdir()} == {"layershard-rank0.json", *kept}


DRAFTING = """
import os, sys
from vllm_layershard.runtime import report_file
def half(fd, data):
    os.write(fd, data[:2])
    print("ready", flush=True)
    os.read(0, 1)
report_file._write_all = half
report_file.ReportFile(sys.argv[1], 0).write("whole")
"""


def test_a_living_servers_draft_stays_and_a_killed_ones_goes(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", DRAFTING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout.readline() == "ready\n"
    (draft,) = tmp_path.iterdir()
    assert draft.read_text() == "wh"
    ReportFile(str(tmp_path), 0).prepare()
    assert draft.exists()
    writer.kill()
    writer.communicate()
    ReportFile(str(tmp_path), 0).prepare()
    assert not list(tmp_path.iterdir())


def test_failures_on_a_full_disk_leave_nothing_however_many_threads_meet_them(
    tmp_path, monkeypatch
):
    report, descriptors = Report(str(tmp_path), 0, [], {}), len(os.listdir("/proc/self/fd"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    failed: list[str] = []

    def fail() -> None:
        with pytest.raises(ConfigError) as error:
            report.write()
        failed.append(str(error.value))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        threads = [threading.Thread(target=fail) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(failed) == 10
    assert all("No space left on device" in text for text in failed)
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == descriptors
    report.write()
    assert said_of(tmp_path)["rank"] == 0


@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_what_is_planted_under_the_reports_name_is_replaced_and_not_followed(tmp_path, planted):
    target, path = tmp_path / "precious", tmp_path / "reports" / "layershard-rank0.json"
    target.write_text("precious")
    path.parent.mkdir()
    path.symlink_to(target) if planted == "link" else os.mkfifo(path)
    file = ReportFile(str(path.parent), 0)
    file.prepare()
    file.write("{}")
    assert path.read_text() == "{}"
    assert not path.is_symlink()
    assert target.read_text() == "precious"


def test_a_link_under_the_drafts_name_is_not_followed(tmp_path, monkeypatch):
    target = tmp_path / "precious"
    target.write_text("precious")
    monkeypatch.setattr(report_file.secrets, "token_hex", lambda _: "0a")
    (tmp_path / f"layershard-rank0.{os.getpid()}-0a.tmp").symlink_to(target)
    with pytest.raises(ConfigError, match="cannot be written"):
        ReportFile(str(tmp_path), 0).write("{}")
    assert target.read_text() == "precious"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"process": {"pid": "many", "hostname": "x"}}'])
def test_a_living_writer_that_says_nothing_of_itself_is_refused_all_the_same(tmp_path, text):
    path = tmp_path / "layershard-rank0.json"
    path.write_text(text)
    script = (
        "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_WRONLY);"
        "fcntl.lockf(fd, fcntl.LOCK_EX); print('ready', flush=True); os.read(0, 1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(ConfigError, match="which runs \\(its process is not known\\)"):
            ReportFile(str(tmp_path), 0).prepare()
        holder.communicate("x")
    ReportFile(str(tmp_path), 0).prepare()
