"""Counters: what one series did on this rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts since loading. `waited_us` is the CPU's time in waits (on the CPU: exposed time).

    `exchanges` counts token exchanges, `exchanged_rows` the rows that this rank's share of their
    products had.
    """

    forwards: int = 0
    launches: int = 0
    waits: int = 0
    waited_us: float = 0.0
    exchanges: int = 0
    exchanged_rows: int = 0
