"""Counters: what one series did on this rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts since loading. `waited_us` is the CPU's time in waits (on the CPU: exposed time).

    `exchanges` counts token exchanges, `exchanged_rows` the rows that this rank's share of their
    products had. `activation_forwards` are those of the `forwards` that moved tokens instead of
    weights. `weight_bytes` and `activation_bytes` came from other ranks to this one: so each byte
    that moves is counted once in its group.
    """

    forwards: int = 0
    launches: int = 0
    waits: int = 0
    waited_us: float = 0.0
    exchanges: int = 0
    exchanged_rows: int = 0
    activation_forwards: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
