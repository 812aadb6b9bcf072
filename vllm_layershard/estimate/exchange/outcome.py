"""What an exchange comes to: bytes, and times beside plain tensor parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vllm_layershard.estimate.exchange.linears import Alike, Held
from vllm_layershard.estimate.outcome import PhaseName


class LinearTime(NamedTuple):
    """Seconds of one linear in one forward: its product, and its collectives."""

    product: float
    collectives: float

    @property
    def total(self) -> float:
        """One after the other: nothing hides a collective."""
        return self.product + self.collectives


class ExchangeTimes(NamedTuple):
    """A forward's exchanged linears, a layer's mean: split as without an exchange, and whole.

    `layers` are so many; `forward` is the compute of the whole forward without an exchange.
    """

    tokens: int
    rows: int
    layers: int
    split: LinearTime
    whole: LinearTime
    forward: float

    @property
    def longer(self) -> float:
        """Seconds by which a layer takes longer; below 0 where it gains."""
        return self.whole.total - self.split.total

    @property
    def share(self) -> float:
        """By how much the forward takes longer, as a share of its compute."""
        return self.layers * self.longer / self.forward if self.forward else 0.0

    @property
    def wins(self) -> bool:
        """Whether the forward gets shorter."""
        return self.longer < 0


class ExchangeOutcome(NamedTuple):
    """The linears, what ranks hold of them, and the verdict.

    `phases` and `wins_from`, the fewest tokens of a forward that gains, are empty and None where
    the device lacks a number, which `lacking` names; None also where no number of tokens gains.
    `unhidden`: tokens whose bytes saved are as many as a layer's weight, None where none are saved.
    """

    linears: tuple[Alike, ...]
    held: Held
    verdict: str
    phases: Mapping[PhaseName, ExchangeTimes]
    wins_from: int | None
    unhidden: int | None
    lacking: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def pays_in(self) -> tuple[PhaseName, ...]:
        """The phases that get shorter."""
        return tuple(name for name, times in self.phases.items() if times.wins)
