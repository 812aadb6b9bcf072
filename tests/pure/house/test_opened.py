"""The planner opens files in one place: bounded_file.py, which asks first what they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = (
    "vllm_layershard/models",
    "vllm_layershard/estimate",
    "vllm_layershard/planner",
    "vllm_layershard/plan",
    "cli/layershard_cli",
)
OPENS = frozenset(
    {"open", "read_text", "read_bytes", "write_text", "write_bytes", "fdopen", "FileIO", "mmap"}
)
SAID = {
    "vllm_layershard/models/sources/http_get.py": ["_opener(commits).open"],
    "cli/layershard_cli/output.py": ["os.open"],
}
"""A request over the network, and /dev/null for a stream that nobody reads."""


def opened(source: str) -> list[str]:
    """What opens a file, by name; a call or not: `map(open, paths)` opens, too."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Name) and node.id in OPENS)
        or (isinstance(node, ast.Attribute) and node.attr in OPENS)
    ]


def test_no_other_file_of_the_planner_opens_one() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (names := opened(path.read_text()))
    }
    assert found == SAID


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "Path(path).open()",
        "path.read_text()",
        "io.open(path)",
        "os.fdopen(1)",
        "list(map(open, paths))",
        "resources.files(package).joinpath(name).read_bytes()",
    ],
)
def test_an_open_is_found(source: str) -> None:
    assert len(opened(source)) == 1


def test_what_opens_none_is_not() -> None:
    assert opened("from x import opened\nwith opened(path) as file:\n    file.read(8)") == []
