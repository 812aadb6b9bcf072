"""Sheet: lines, pairs and tables for a person. Plain text here; on a terminal, `rich_sheet` draws.

What goes into a pipe or a file is plain, and wrapped only where COLUMNS says how wide it may be.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Protocol

from layershard_cli.output import emit, printable

_NARROWEST = 6
_GAP = 2


class Sheet(Protocol):
    """Where a command writes to, from top to bottom."""

    @property
    def width(self) -> int:
        """Characters in a line."""

    def heading(self, name: str, text: str) -> None:
        """What the sheet is about."""

    def line(self, text: str) -> None:
        """One paragraph."""

    def note(self, text: str) -> None:
        """What a user should know."""

    def drawn(self, text: str) -> None:
        """A line that is drawn with characters: never wrapped."""

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what is said of them."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Cells; those of a `layer` or with numbers to the right, the others to the left."""


def sheet() -> Sheet:
    """The one for what stdout is."""
    if sys.stdout.isatty() or os.environ.get("FORCE_COLOR"):
        from layershard_cli.render.rich_sheet import RichSheet

        return RichSheet()
    return PlainSheet()


def is_number(column: str) -> bool:
    """Whether the cells of a column stand to the right: all but names and lists."""
    return column in _NUMBERS


_NUMBERS = frozenset(
    {
        *("stage", "ranks", "layers", "layer", "slots", "saved per rank"),
        *("group rank", "before", "resident", "saved"),
    }
)


class PlainSheet:
    """Plain text."""

    def __init__(self) -> None:
        given = os.environ.get("COLUMNS", "")
        self._limit = max(int(given), 20) if given.isdecimal() and len(given) < 6 else None

    @property
    def width(self) -> int:
        """80 where nobody says."""
        return self._limit or 80

    def heading(self, name: str, text: str) -> None:
        """One paragraph."""
        self.line(name + text)

    def line(self, text: str) -> None:
        """Wrapped."""
        for part in self._wrapped(printable(text), self._limit):
            emit(part)

    def note(self, text: str) -> None:
        """Wrapped."""
        self.line(f"note: {text}")

    def drawn(self, text: str) -> None:
        """Cut."""
        emit(text[: self._limit])

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """In two columns, the second one wrapped."""
        first = max(len(name) for name, _ in rows) + _GAP
        room = None if self._limit is None else max(self._limit - first, _NARROWEST)
        for name, text in rows:
            for i, part in enumerate(self._wrapped(printable(text), room)):
                emit(f"{'' if i else name:{first}}{part}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """In columns, their cells folded where they do not fit."""
        self.line(title)
        cells = [list(columns), *([printable(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        if self._limit is not None:
            room = max(self._limit - _GAP * (len(widths) - 1), len(widths))
            while sum(widths) > room:
                widths[widths.index(max(widths))] -= 1
        for row in cells:
            folded = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
            for i in range(max(map(len, folded))):
                parts = [parts[i] if i < len(parts) else "" for parts in folded]
                aligned = (
                    f"{part:>{width}}" if is_number(column) else f"{part:<{width}}"
                    for part, width, column in zip(parts, widths, columns, strict=True)
                )
                emit((" " * _GAP).join(aligned).rstrip())

    def _wrapped(self, text: str, width: int | None) -> list[str]:
        return [text] if width is None else textwrap.wrap(text, width) or [""]


def _folded(cell: str, width: int) -> list[str]:
    return [cell] if len(cell) <= width else textwrap.wrap(cell, width)
