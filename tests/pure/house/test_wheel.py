"""What `pip install .` gives: a planner that runs in an environment with nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*command: str) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.matrix(part="tools")
def test_the_planner_installs_alone_and_plans(tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("vllm_layershard-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "vllm_layershard/models/configs/deepseek-ai--DeepSeek-V3.json" in names
    assert "vllm_layershard/py.typed" in names
    assert "layershard_cli/main.py" in names
    (text,) = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert zipfile.ZipFile(wheel).read(text) == (ROOT / "LICENSE").read_bytes()
    assert not [name for name in names if name.startswith(("cli/", "tests/"))]

    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", str(wheel))
    installed = run(python, "-m", "pip", "list", "--format", "freeze")
    assert not [line for line in installed.splitlines() if line.startswith(("torch", "vllm="))]
    script = str(tmp_path / "venv" / "bin" / "layershard")
    plan = json.loads(run(script, "plan", "--model", "DeepSeek-V3", "--json"))
    assert plan["model"]["num_layers"] == 61
