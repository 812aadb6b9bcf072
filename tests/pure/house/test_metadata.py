"""What the package says that it needs is what it is tested with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TESTED = dict(
    line.split("==")
    for line in (ROOT / "tests" / "constraints.txt").read_text().splitlines()
    if "==" in line
)
DEPENDENCIES = [Requirement(text) for text in PROJECT["dependencies"]]


def operators(specifiers: SpecifierSet) -> set[str]:
    return {each.operator for each in specifiers}


@pytest.mark.parametrize("dependency", DEPENDENCIES, ids=lambda each: each.name)
def test_a_dependency_is_bounded_on_both_sides_of_what_is_tested(dependency: Requirement) -> None:
    assert operators(dependency.specifier) == {">=", "<"}
    assert TESTED[dependency.name] in dependency.specifier


def test_the_build_backend_is_pinned() -> None:
    for text in PYPROJECT["build-system"]["requires"]:
        assert operators(Requirement(text).specifier) == {"=="}, text


def test_the_releases_of_vllm_are_those_of_the_environments() -> None:
    """`make` sets two up: the README's, and the oldest that is served."""
    (cpu,) = map(Requirement, PROJECT["optional-dependencies"]["cpu"])
    (cuda,) = map(Requirement, PROJECT["optional-dependencies"]["cuda"])
    served = re.search(r"VLLM_VERSION=([\d.]+)\+cpu", (ROOT / "README.md").read_text())
    oldest = re.search(r"OLDEST_VLLM := ([\d.]+)", (ROOT / "Makefile").read_text())
    assert served is not None
    assert oldest is not None
    assert str(cpu.specifier) == f"=={served[1]}"
    assert served[1] in cuda.specifier
    lowest = next(each.version for each in cuda.specifier if each.operator == ">=")
    assert oldest[1] == f"{lowest}.0"
