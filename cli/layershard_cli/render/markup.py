"""Text within a page."""

from __future__ import annotations

import html

from layershard_cli.output import printable


def escape(text: str) -> str:
    """The text with its markup escaped, and what a terminal that shows the page would act on."""
    return html.escape(printable(text))
