"""Text within a page, and tables and lists of it."""

from __future__ import annotations

import html
from collections.abc import Iterable

from layershard_cli.output import printable


def escape(text: str) -> str:
    """The text with its markup escaped, and what a terminal that shows the page would act on."""
    return html.escape(printable(text))


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table that scrolls where it is wider than the page."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def bullets(lines: Iterable[str]) -> str:
    """A list without an order."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
