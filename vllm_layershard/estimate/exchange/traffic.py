"""Traffic: the bytes of activations that a rank sends for one row-parallel linear."""

from __future__ import annotations

from typing import NamedTuple


class Traffic(NamedTuple):
    """A linear of `inner` columns and `width` rows, whole, over `ranks` tensor-parallel ranks.

    `element` is the bytes of an element. A rank sends every other one a part of what it has: the
    all-reduce counts as a ring, which sends each part twice.
    """

    ranks: int
    inner: int
    width: int
    element: int

    def rows(self, tokens: int) -> int:
        """Those that a rank computes; the last ones may be padding."""
        return -(-tokens // self.ranks)

    def reduced(self, tokens: int) -> float:
        """Bytes of the all-reduce of plain tensor parallelism."""
        return 2 * self._others * tokens * self.width * self.element / self.ranks

    def exchanged(self, tokens: int) -> float:
        """Bytes of the all-to-all: its own columns of all rows but its own."""
        return self._others * self.rows(tokens) * self.inner * self.element / self.ranks

    def gathered(self, tokens: int) -> float:
        """Bytes of the all-gather of the results."""
        return float(self._others * self.rows(tokens) * self.width * self.element)

    @property
    def ratio(self) -> float:
        """Bytes of the exchange and the gather by those of the all-reduce."""
        return (self.inner / self.ranks + self.width) / (2 * self.width)

    @property
    def scattered_ratio(self) -> float:
        """Bytes of the exchange by those of the reduce-scatter that sequence parallelism has."""
        return self.inner / (self.ranks * self.width)

    @property
    def least_ranks(self) -> int:
        """From so many ranks on it sends fewer bytes than the all-reduce."""
        return self.inner // self.width + 1

    @property
    def saved_a_token(self) -> float:
        """Bytes that a rank does not send; below 0 where it sends more."""
        return self.reduced(self.ranks) * (1 - self.ratio) / self.ranks

    @property
    def _others(self) -> int:
        return self.ranks - 1
