"""Counts and slowdowns, as a person reads them."""

from __future__ import annotations


def tokens(count: int) -> str:
    """So many tokens, for a person."""
    return "1 token" if count == 1 else f"{count:,} tokens"


def layers(count: int) -> str:
    """So many layers."""
    return "1 layer" if count == 1 else f"{count} layers"


def slots(count: int) -> str:
    """So many slots."""
    return "1 slot" if count == 1 else f"{count} slots"


def nics(count: float) -> str:
    """So many network cards; a fraction where groups share one."""
    return (
        "1 NIC"
        if count == 1
        else f"{count:,.0f} NICs"
        if count == int(count)
        else f"{count:g} NICs"
    )


def percent(share: float) -> str:
    """A slowdown for a person: finer around the 1 % that decides, and finest just above it."""
    if 0.01 < share < 0.0101:
        return f"{share:.4%}"
    return f"{share:.2%}" if share < 0.02 else f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def changes(share: float) -> str:
    """What becomes of a forward that takes so much longer, a share of its compute; below 0, less.

    What would read as a change of nothing slows by nothing.
    """
    if share < 0 and float(said := percent(-share).rstrip("%")):
        return f"is {said}% faster"
    return f"slows by {percent(abs(share))}"
