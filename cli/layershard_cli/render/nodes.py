"""What further nodes launch, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SHOWN: Final = 16
"""Nodes that are shown where there are more; --json has all."""


def further_nodes(launches: Sequence[str]) -> list[str]:
    """Of each node after the first what it adds to the first one's command, a line a node."""
    first = launches[0]
    lines = [
        f"  node {node}: ...{command.removeprefix(first)}"
        for node, command in enumerate(launches[1:], start=2)
    ]
    if len(lines) < SHOWN:
        return lines
    return [*lines[: SHOWN - 2], "  ... (--json has all of them)", lines[-1]]
