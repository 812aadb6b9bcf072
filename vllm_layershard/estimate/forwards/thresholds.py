"""Thresholds: from how many tokens on a prefill hides what moves."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Final, NamedTuple

MAX_TOKENS: Final = 1 << 20
"""They are looked for up to here."""

_HALVE_AT: Final = 8
"""Every so many-th trial halves what is left, should the others converge slowly."""


class Thresholds(NamedTuple):
    """The fewest tokens a rank from which on a prefill is so; None: no number of tokens makes it.

    `never_waits`: no linear waits for its weight, with the least contention and so with any.
    `hidden_least` and `hidden_most`: it costs at most TOLERANCE, with the least contention and with
    the most.
    """

    never_waits: int | None
    hidden_least: int | None
    hidden_most: int | None


def fewest_tokens(
    progress: Callable[[int], float], known: int, guess: float, enough: int | None = None
) -> int | None:
    """The fewest tokens whose `progress` is not below 0; None where none is up to MAX_TOKENS.

    The progress grows with the tokens, and may stay 0 from where it is. It is asked at `known`
    first, then at the guess, which may be any number. `enough`: so many are known to be enough.
    """
    search = _Search(MAX_TOKENS + 1 if enough is None else enough)
    tokens = known
    if 0 < known < search.enough:
        search.tried(known, progress(known))
        tokens = round(guess)
    while not search.ended:
        tokens = search.within(tokens)
        search.tried(tokens, progress(tokens))
        tokens = search.next()
    return search.enough if search.enough <= MAX_TOKENS else None


class _Search:
    """Too few tokens and enough, and the last points, through which a line is drawn.

    More than MAX_TOKENS are never tried, and stand for no number.
    """

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self._too_few = 0
        self._trials = 0
        self._line: list[tuple[int, float]] = []

    @property
    def ended(self) -> bool:
        """Whether nothing is left between too few and enough."""
        return self.enough - self._too_few <= 1

    def within(self, tokens: int) -> int:
        """The number between too few and enough that is nearest."""
        return min(max(tokens, self._too_few + 1), self.enough - 1)

    def tried(self, tokens: int, progress: float) -> None:
        """Take in a point. Where the progress stays 0 it says nothing of the line."""
        self._trials += 1
        if progress < 0:
            self._too_few = tokens
        else:
            self.enough = tokens
        if progress:
            self._line = [*self._line[-1:], (tokens, progress)]

    def next(self) -> int:
        """Where the line of the last two points crosses 0."""
        middle = (self._too_few + self.enough) // 2
        if self._trials % _HALVE_AT == 0 or len(self._line) < 2:
            return middle
        (before, then), (tokens, now) = self._line
        if then == now:
            return middle
        return ceil(tokens - now * (tokens - before) / (now - then))
