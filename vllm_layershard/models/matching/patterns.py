"""Patterns: the expressions of a config, matched all at once in time that no expression decides.

Note on the matching. Every branch of every expression is a row of bits, one for each place between
two of its items; all rows stand in one integer. A character of a name moves all of them on by one
addition, some shifts and some masks. So a name costs as many turns as it has characters, however
the expressions are written, and a turn costs as much as the integer is long: at most MAX_PLACES.
This is how a nondeterministic automaton is simulated with bits (Navarro and Raffinot, Flexible
Pattern Matching in Strings, 2002, chapter 4).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from vllm_layershard.models.matching.expression import (
    Branch,
    Characters,
    Expression,
    ExpressionError,
)

MAX_PATTERNS: Final = 2048
"""Real lists have a few dozen."""
MAX_PLACES: Final = 1 << 16
MAX_NEGATED: Final = 16
"""Each is an automaton of its own."""


class Patterns:
    """Which of some expressions a name matches first. What is asked twice is answered at once."""

    def __init__(self, expressions: Iterable[Expression] = ()) -> None:
        """Make the automatons.

        Raises:
            ExpressionError: all together are more than is matched.
        """
        places, start, branches = 0, 0, list[Branch]()
        self._starts: list[tuple[int, int]] = []
        """Of each expression that is not negated the first place of its rows, and its index."""
        negated: list[tuple[int, tuple[Branch, ...]]] = []
        for index, expression in enumerate(expressions):  # which may be read one by one
            if expression.negated:
                negated.append((index, expression.branches))
            else:
                self._starts.append((start, index))
                start += sum(len(branch.items) + 1 for branch in expression.branches)
                branches += expression.branches
            places += sum(len(branch.items) + 1 for branch in expression.branches)
            if index >= MAX_PATTERNS or places > MAX_PLACES or len(negated) > MAX_NEGATED:
                raise ExpressionError("are more than are matched")
        self._automaton = _automaton_of(branches) if branches else None
        self._negated = tuple((index, _automaton_of(rows)) for index, rows in negated)
        self._known: dict[str, int | None] = {}

    def match(self, name: str) -> bool:
        """Whether one of them matches the name, from its start."""
        return self.first(name) is not None

    def first(self, name: str) -> int | None:
        """The index of the first that matches the name, from its start."""
        if self._automaton is None and not self._negated:
            return None
        if name not in self._known:
            self._known[name] = self._first(name)
        return self._known[name]

    def _first(self, name: str) -> int | None:
        found = [index for index, automaton in self._negated if automaton.first(name) is None]
        place = self._automaton.first(name) if self._automaton is not None else None
        if place is not None:
            found.append(self._starts[bisect_right(self._starts, (place, MAX_PATTERNS)) - 1][1])
        return min(found, default=None)


@dataclass(slots=True)
class _Automaton:
    """Branches as bits: where each starts and ends, which items may be missing or repeated."""

    start: int
    optional: int
    repeated: int
    ends: int
    """Places where a name matches whatever follows: once reached, they are never left."""
    whole: int
    """Places where it matches if it ends there."""
    sets: tuple[tuple[Characters, int], ...]
    """Each set of characters, and the items that take one of it."""
    _taking: dict[str, tuple[int, int]] = field(default_factory=dict)
    _after: dict[str, int] = field(default_factory=dict)

    def first(self, name: str) -> int | None:
        """The place in which the first row that matches the name ends; None: none does.

        What stands before the name's dots is walked once for all names.
        """
        state, walked = self._closed(self.start), 0
        stem = name.rfind(".")
        while stem > 0 and name[:stem] not in self._after:
            stem = name.rfind(".", 0, stem)
        if stem > 0:
            state, walked = self._after[name[:stem]], stem
        for position in range(walked, len(name)):
            if name[position] == "." and position:
                self._after[name[:position]] = state
            state = self._step(state, name[position])
        matched = state & (self.ends | self.whole)
        return (matched & -matched).bit_length() - 1 if matched else None

    def _step(self, state: int, character: str) -> int:
        takes, stays = self._taking.get(character) or self._takers(character)
        return self._closed(((state & takes) << 1) | (state & stays))

    def _closed(self, state: int) -> int:
        """With the places that are reached by leaving out items that may be missing.

        The addition carries through each run of such items, to the place behind its last.
        """
        missing = self.optional
        return state | (((state & missing) + missing) ^ missing)

    def _takers(self, character: str) -> tuple[int, int]:
        """The places from which this character moves on, and at which it may stay."""
        takes = 0
        for characters, items in self.sets:
            if characters.include(character):
                takes |= items
        taking = takes, ((takes & self.repeated) << 1) | self.ends
        self._taking[character] = taking
        return taking


def _automaton_of(branches: Iterable[Branch]) -> _Automaton:
    """One row behind another; an item's bit is that of the place before it."""
    starts, optional, repeated = list[int](), list[int](), list[int]()
    ends: dict[bool, list[int]] = {False: [], True: []}
    sets: dict[Characters, list[int]] = {}
    place = 0
    for branch in branches:
        starts.append(place)
        for item in branch.items:
            sets.setdefault(item.characters, []).append(place)
            if item.optional:
                optional.append(place)
            if item.repeated:
                repeated.append(place)
            place += 1
        ends[branch.whole].append(place)
        place += 1
    return _Automaton(
        start=_bits(starts),
        optional=_bits(optional),
        repeated=_bits(repeated),
        ends=_bits(ends[False]),
        whole=_bits(ends[True]),
        sets=tuple((characters, _bits(places)) for characters, places in sets.items()),
    )


def _bits(places: list[int]) -> int:
    """An integer with these bits, in time that grows as their number does."""
    if not places:
        return 0
    found = bytearray(places[-1] // 8 + 1)
    for place in places:
        found[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(found, "little")
