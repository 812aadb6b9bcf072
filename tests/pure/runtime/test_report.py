"""A report that cannot be written: told before anything is loaded, and while serving once."""

from __future__ import annotations

import json
import logging

import pytest

from vllm_layershard.errors import ConfigError
from vllm_layershard.runtime.report import Report
from vllm_layershard.runtime.report_file import make_writable


def test_a_directory_is_made_and_tried(tmp_path):
    make_writable(str(tmp_path / "new" / "reports"))
    assert list((tmp_path / "new" / "reports").iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "reports", "/proc/nope"):
        with pytest.raises(ConfigError, match=f"report_dir = '{place}': cannot be written"):
            make_writable(str(place))


@pytest.mark.parametrize("name", ["\ud800", "a\0b"])
def test_a_directory_of_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    directory = f"{tmp_path}/{name}"
    for write in (lambda: make_writable(directory), Report(directory, 3, [], {}).write):
        with pytest.raises(ConfigError, match=r"report_dir = '.*': cannot be written \(.+\); give"):
            write()


def test_a_server_that_loses_its_directory_says_so_once(tmp_path, caplog, monkeypatch):
    directory = tmp_path / "reports"
    report = Report(str(directory), 3, [], {})
    report.write()
    (directory / "layershard-rank3.json").unlink()
    directory.rmdir()
    directory.touch()
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)  # as without vLLM
    for _ in range(3):
        report._write_or_log()
    assert [record.message for record in caplog.records] == [
        f"rank 3: layer_sharding.report_dir = '{directory}': cannot be written (File exists); give "
        "a directory that every rank may write to"
    ]
    directory.unlink()
    report._write_or_log()
    assert json.loads((directory / "layershard-rank3.json").read_text())["rank"] == 3
