"""What a file's docstring promises: a name before its first colon is a name of that file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LABEL = re.compile(r"`?([A-Za-z_]\w*)`?: ")
"""One word and a colon: a reader takes it for a name and looks for it in the file."""


def names(tree: ast.Module, *, exports: bool) -> Iterator[str]:
    """What the file defines at any depth; with `exports` also what it takes in to hand it on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif exports and isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def false_label(source: str, *, exports: bool = False) -> str | None:
    """The label that opens the file's docstring, if it is no name of the file."""
    tree = ast.parse(source)
    label = LABEL.match(ast.get_docstring(tree) or "")
    if label is None or label[1] in names(tree, exports=exports):
        return None
    return label[1]


@pytest.mark.parametrize("folder", ["vllm_layershard", "cli/layershard_cli"])
def test_a_label_that_opens_a_file_is_a_name_of_it(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)): label
        for path in files
        if (label := false_label(path.read_text(), exports=path.name == "__init__.py"))
    }
    assert files
    assert found == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""Choice: which linears."""\ndef choose(): ...\n', "Choice"),
        ('"""`Choice`: which linears."""\ndef choose(): ...\n', "Choice"),
        ('"""Pareto: what is saved."""\ndef pareto(): ...\n', "Pareto"),
        ('"""Plan: decided."""\nfrom plan import Plan\n', "Plan"),
        ('"""Plan: decided."""\nclass Plan: ...\n', None),
        ('"""pareto: what is saved."""\ndef pareto(): ...\n', None),
        ('"""Copy: target and source."""\nCopy = tuple[int, int]\n', None),
        ('"""The hosts: vLLM and vllm-ascend."""\n', None),
        ("", None),
    ],
)
def test_a_label_that_is_no_name_is_found(source, found):
    assert false_label(source) == found


def test_a_package_may_open_with_what_it_exports():
    source = '"""Plan: decided."""\nfrom plan import Plan\n'
    assert false_label(source, exports=True) is None
