"""Sizes and times as a person reads them."""

from __future__ import annotations


def size(nbytes: int) -> str:
    """Bytes for a person."""
    magnitude = abs(nbytes)
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if magnitude >= factor:
            return f"{nbytes / factor:,.2f} {unit}"
    return f"{nbytes} B"


def span(low: int, high: int) -> str:
    """One size, or two where ranks differ."""
    return size(low) if low == high else f"{size(low)} - {size(high)}"


def milliseconds(seconds: float) -> str:
    """A time for a person."""
    return f"{seconds * 1e3:,.2f} ms"
