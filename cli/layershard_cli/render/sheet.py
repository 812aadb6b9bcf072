"""Sheet: lines, pairs and tables for a person, from top to bottom.

Lines are wrapped to the window of a terminal, or to COLUMNS; into a pipe without COLUMNS each is as
long as it comes. A terminal gets what a pipe gets, with a bold name and yellow notes.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Final, NamedTuple

from layershard_cli.output import emit, emit_escaped, printable

_NARROWEST: Final = 6
_GAP: Final = 2

_BOLD: Final = "\x1b[1m"
_YELLOW: Final = "\x1b[33m"
_PLAIN: Final = "\x1b[0m"


class Column(NamedTuple):
    """A column's title, and whether its cells stand to the right, as numbers do."""

    title: str
    right: bool = False


class Sheet:
    """Writes to stdout. Nothing in a text is markup; what a terminal would act on is escaped."""

    def __init__(self) -> None:
        on_terminal = sys.stdout.isatty()
        self._limit = _limit(on_terminal)
        coloured = on_terminal or bool(os.environ.get("FORCE_COLOR"))
        self._coloured = coloured and not os.environ.get("NO_COLOR")

    @property
    def width(self) -> int:
        """Characters in a line; 80 where nobody says."""
        return self._limit or 80

    def heading(self, name: str, text: str) -> None:
        """What the sheet is about: a paragraph that begins with the name."""
        self._paragraph(printable(name), printable(text), _BOLD)

    def line(self, text: str) -> None:
        """One paragraph."""
        self._paragraph("", printable(text), "")

    def note(self, text: str) -> None:
        """What a user should know."""
        self._paragraph("note:", f" {printable(text)}", _YELLOW)

    def drawn(self, text: str) -> None:
        """A line that is drawn with characters: cut, never wrapped."""
        emit(text[: self._limit])

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what is said of them, in two columns; the second one is wrapped.

        Where it takes several lines each of its clauses begins a line.
        """
        first = max(len(name) for name, _ in rows) + _GAP
        room = None if self._limit is None else max(self._limit - first, _NARROWEST)
        for name, text in rows:
            for i, part in enumerate(_by_clause(printable(text), room)):
                emit(f"{'' if i else name:{first}}{part}")

    def table(self, title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """A title, then columns; cells are folded where they do not fit."""
        self.line(title)
        titles = [column.title for column in columns]
        cells = [titles, *([printable(cell) for cell in row] for row in rows)]
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
                    f"{part:>{width}}" if column.right else f"{part:<{width}}"
                    for part, width, column in zip(parts, widths, columns, strict=True)
                )
                emit((" " * _GAP).join(aligned).rstrip())

    def _paragraph(self, lead: str, text: str, colour: str) -> None:
        """Wrapped; `lead` in the colour, unless the wrapping breaks it."""
        first, *others = _wrapped(lead + text, self._limit)
        if colour and self._coloured and first.startswith(lead):
            first = f"{colour}{lead}{_PLAIN}{first[len(lead) :]}"
        for part in (first, *others):
            emit_escaped(part)


def _limit(on_terminal: bool) -> int | None:
    """The characters of a line; None where a line may be of any length."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and len(given) < 6:
        return max(int(given), 20)
    return max(shutil.get_terminal_size().columns, 20) if on_terminal else None


def _wrapped(text: str, width: int | None) -> list[str]:
    return [text] if width is None else textwrap.wrap(text, width) or [""]


def _by_clause(text: str, width: int | None) -> list[str]:
    """Wrapped, and broken first behind the semicolons that stand in no brackets."""
    if width is None or len(text) <= width:
        return _wrapped(text, width)
    clauses, held = [], ""
    for piece in text.split("; "):
        held = f"{held}; {piece}" if held else piece
        if held.count("(") == held.count(")"):
            clauses.append(held)
            held = ""
    if held:
        clauses.append(held)
    ended = (*(f"{clause};" for clause in clauses[:-1]), clauses[-1])
    return [line for clause in ended for line in _wrapped(clause, width)]


def _folded(cell: str, width: int) -> list[str]:
    return [cell] if len(cell) <= width else textwrap.wrap(cell, width)
