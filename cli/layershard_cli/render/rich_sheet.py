"""RichSheet: a sheet on a terminal. The only module that imports rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layershard_cli.output import leave_closed_pipe, printable
from layershard_cli.render.sheet import is_number


class _Console(Console):
    """A console that ends quietly when its reader does."""

    def on_broken_pipe(self) -> None:
        """Called by rich when stdout is closed."""
        leave_closed_pipe()


class RichSheet:
    """Colours, frames, and what fits the window."""

    def __init__(self) -> None:
        self._console = _Console()

    @property
    def width(self) -> int:
        """Of the window."""
        return self._console.width

    def heading(self, name: str, text: str) -> None:
        """The name in bold."""
        self._console.print(Text.assemble((printable(name), "bold"), printable(text)))

    def line(self, text: str) -> None:
        """Numbers in colour; nothing in it is markup."""
        self._console.print(printable(text), markup=False)

    def note(self, text: str) -> None:
        """In yellow."""
        self._console.print(Text.assemble(("note:", "yellow"), " ", printable(text)))

    def drawn(self, text: str) -> None:
        """Cut at the edge."""
        self._console.print(text, highlight=False, markup=False, no_wrap=True, crop=True)

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """A grid."""
        grid = Table.grid(padding=(0, 2))
        for name, text in rows:
            grid.add_row(name, Text(printable(text)))
        self._console.print(grid)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """With a frame; cells that do not fit are folded."""
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(
                Text(column), justify="right" if is_number(column) else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self._console.print(table)
