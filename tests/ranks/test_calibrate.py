"""`layershard calibrate` on this machine, with real ranks over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_layershard.estimate import profile
from vllm_layershard.estimate.broadcast import broadcast_seconds
from vllm_layershard.estimate.nodes import widest

MIB = 1 << 20


def layershard(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "layershard_cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.matrix(part="tools")
def test_a_calibrated_profile_is_complete_and_planned_with(tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    done = layershard(
        "calibrate", "--quick", "--ranks", "2", "--backend", "gloo", "-o", str(path),
        "--name", "this machine",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "calibrate: 3/3: broadcasts of 8,388,608 bytes" in done.stderr
    device = profile(str(path))
    assert device.name == "this machine"
    assert device.lacking(widest([range(2)], 2)) == ()
    assert device.lacking(widest([range(3)], 2)) == ("link between nodes (3 ranks on 2 nodes of 2)",
        "broadcast time over 3 ranks (measured over 2)")  # fmt: skip
    (table,) = device.broadcast
    assert table.basis == "measured"
    timed = table.seconds[table.sizes.index(MIB)]
    assert broadcast_seconds(MIB, widest([range(2)], 2), device) == timed > 0
    measured = ("bf16", "memory_bandwidth", "memory_efficiency", "product_slowdown")
    for key in (*measured, "broadcast_slowdown"):
        figure = device.figures[key]
        assert figure is not None
        assert figure.basis == "measured"
    assert 0 < device.memory_efficiency.value <= 1
    plan = layershard(
        "plan",
        "--model",
        "DeepSeek-V2-Lite",
        "--dp",
        "2",
        "--ep",
        "--hardware",
        str(path),
        "--json",
    )
    assert plan.returncode == 0, plan.stderr
    planned = json.loads(plan.stdout)
    assert planned["prefetch"]["phases"][0]["fetch_us"] > 0
    assert planned["basis"]["prefetch.phases.fetch_us"] == "measured"


def test_one_message_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = layershard("calibrate", PYTHONPATH=paths)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "calibrate needs torch, which cannot be imported (no torch here)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_backend_of_torch_that_does_not_load_is_told_with_the_remedy(tmp_path: Path) -> None:
    """As torch_npu without CANN: torch loads what names itself a backend, and raises."""
    (tmp_path / "backend_without_cann.py").write_text("raise OSError('libascendcl.so')\n")
    installed = tmp_path / "backend_without_cann-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: backend-without-cann\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(
        "[torch.backends]\nbackend_without_cann = backend_without_cann:load\n"
    )
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = layershard("calibrate", PYTHONPATH=paths)
    assert done.returncode == 3
    assert "Failed to load the backend extension" in done.stderr
    assert "set_env.sh" in done.stderr
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in done.stderr.partition("set_env.sh")[2]
    assert "Traceback" not in done.stderr


def test_a_backend_without_devices_is_refused() -> None:
    done = layershard("calibrate", "--backend", "hccl", "--ranks", "3")
    assert done.returncode == 3
    assert "hccl needs 3 npu devices, this machine has 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert layershard("calibrate", "--backend", "mpi").returncode == 2


def test_an_output_that_cannot_be_written_is_refused_before_measuring() -> None:
    done = layershard("calibrate", "--backend", "gloo", "-o", "/proc/none/here.json")
    assert done.returncode == 3
    assert "/proc/none/here.json cannot be written" in done.stderr
    assert "1/3" not in done.stderr
