"""Small enough to be read: no class over 150 lines or 10 attributes, no folder over 18 files."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = [
    path
    for folder in ("vllm_layershard", "cli", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "build" not in path.parts
]
CLASS_LINES = 150
ATTRIBUTES = 10
FILES = 18


def classes(source: str) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def attributes(node: ast.ClassDef) -> set[str]:
    """What a method of the class sets on `self`. A record's fields are data, and not counted."""
    return {
        target.attr
        for target in ast.walk(node)
        if isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }


def too_large(source: str) -> list[str]:
    found = []
    for node in classes(source):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > CLASS_LINES:
            found.append(f"{node.name}: {lines} lines")
        if len(attributes(node)) > ATTRIBUTES:
            found.append(f"{node.name}: {len(attributes(node))} attributes")
    return found


@pytest.mark.parametrize("folder", ["vllm_layershard", "cli"])
def test_no_class_does_two_jobs(folder):
    found = {
        str(path.relative_to(ROOT)): large
        for path in SOURCES
        if path.is_relative_to(ROOT / folder) and (large := too_large(path.read_text()))
    }
    assert found == {}


def test_no_folder_is_a_heap():
    files = Counter(str(path.parent.relative_to(ROOT)) for path in SOURCES)
    assert {folder: count for folder, count in files.items() if count > FILES} == {}


def test_a_class_that_is_too_large_is_found():
    long = "class Long:\n" + "    x = 1\n" * CLASS_LINES
    wide = "class Wide:\n    def __init__(self):\n" + "".join(
        f"        self.a{i} = {i}\n" for i in range(ATTRIBUTES + 1)
    )
    assert too_large(long + wide) == ["Long: 151 lines", "Wide: 11 attributes"]
