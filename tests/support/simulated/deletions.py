"""Deletions: each wait and each record in a class's methods, and the class without one of them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

ORDERING = ("wait_event", "record_event", "join", "wait", "drain", "synchronize")
"""The calls that keep work in order, on streams or on the host."""


class Deletion(NamedTuple):
    """One call of a method; `at` counts the calls in the method's source from 0."""

    owner: type
    method: str
    called: str
    at: int

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.method}-{self.called}-{self.at}"

    def without(self) -> Any:
        """The method without the call: it does nothing, or gives an event that nobody records."""
        function = inspect.unwrap(getattr(self.owner, self.method))
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        tree = ast.fix_missing_locations(_Without(self.at).visit(tree))
        space: dict[str, Any] = {}
        exec(compile(tree, inspect.getfile(function), "exec"), function.__globals__, space)
        return space[self.method]


def deletions(owner: type) -> Iterator[Deletion]:
    """All of a class's own methods."""
    for method, function in vars(owner).items():
        if not inspect.isfunction(function):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        for at, call in enumerate(_calls(tree)):
            assert isinstance(call.func, ast.Attribute)
            yield Deletion(owner, method, call.func.attr, at)


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if _orders(node)]


def _orders(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ORDERING
        and not isinstance(node.func.value, (ast.Constant, ast.JoinedStr))  # joins texts
    )


def ordering_calls(source: str) -> Iterator[str]:
    """All such calls of a module: "Class.method-called", or "function-called" outside classes."""

    def found(node: ast.AST, within: tuple[str, ...]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if _orders(child):
                assert isinstance(child, ast.Call)
                assert isinstance(child.func, ast.Attribute)
                yield f"{'.'.join(within[:2])}-{child.func.attr}"
            named = isinstance(child, (ast.ClassDef, ast.FunctionDef))
            yield from found(child, (*within, child.name) if named else within)

    return found(ast.parse(source), ())


class _Without(ast.NodeTransformer):
    """Puts in its place, for a record, an event that is never recorded; for any other, nothing."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._call: ast.Call | None = None

    def visit(self, node: ast.AST) -> Any:
        if self._call is None:
            self._call = _calls(node)[self._at]
        if node is not self._call:
            return self.generic_visit(node)
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Attribute)
        text = "None"
        if node.func.attr == "record_event":
            text = "__import__('simulated.streams').streams.Event()"
        return ast.parse(text, mode="eval").body
