"""The parts of the matrix: each test belongs to one, and what a page or a target says is true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from parts import PARTS, PartError, part_of

ROOT = Path(__file__).parents[3]


def matrix(*args, **kwargs) -> pytest.Mark:
    return pytest.mark.matrix(*args, **kwargs).mark


def test_a_test_has_one_part_or_none():
    """conftest.py asks this of every test, whenever tests are collected."""
    assert part_of([]) is None
    assert part_of([matrix(part="modes")]) == "modes"
    for wrong in (
        [pytest.mark.matrix.mark],
        [matrix("modes")],
        [matrix(part="none of them")],
        [matrix(part="oldest")],
        [matrix(part="modes"), matrix(part="ends")],
        [matrix(part="modes"), matrix(part="modes")],
    ):
        with pytest.raises(PartError, match="give it one mark"):
            part_of(wrong)


def test_every_part_but_the_oldest_has_tests():
    marks = {
        part
        for file in (ROOT / "tests").rglob("test_*.py")
        if file != Path(__file__)
        for part in re.findall(r'pytest\.mark\.matrix\(part="(\w+)"\)', file.read_text())
    }
    assert marks == PARTS.keys() - {"oldest"}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_make_runs_all_of_them_or_the_one_that_is_named():
    shown = make("help").stdout
    for part, what in PARTS.items():
        assert f" {part}  {what}\n" in shown
    for asked, expected in (((), PARTS.keys()), (("PART=modes",), {"modes"})):
        ran = make("--dry-run", "test-matrix", *asked)
        assert ran.returncode == 0, ran.stderr
        named = set(re.findall(r"""matrix\(part="(\w+)"\)""", ran.stdout))
        assert named == expected - {"oldest"}
        assert (".venv-oldest/bin/python -m pytest" in ran.stdout) == ("oldest" in expected)
    refused = make("--dry-run", "test-matrix", "PART=mode")
    assert refused.returncode != 0
    assert "no such part: mode; the parts are exchange" in refused.stderr


def test_the_page_lists_them_with_the_minutes_that_they_take():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (\d+) (?:measured|estimated) \|$", page, re.M)
    assert {part: what for part, what, _ in rows} == PARTS
    assert all(int(minutes) <= 30 for _, _, minutes in rows)
