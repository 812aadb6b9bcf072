"""Reads a regular expression into an Expression, or refuses it.

Read are characters, classes, groups, alternatives, and repetitions of one character. Refused are
back-references, look-arounds within an expression, and repeated groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, NoReturn

from vllm_layershard.models.matching.expression import (
    ANY,
    END,
    KINDS,
    START,
    Branch,
    Characters,
    Expression,
    ExpressionError,
    Item,
    only,
    require_short,
)

MAX_BRANCHES: Final = 128
"""That groups and alternatives of one expression are written out to."""
MAX_ITEMS: Final = 4096
"""Of all branches of one expression together."""

_MAX_DEPTH: Final = 8


def read_expression(text: str) -> Expression:
    """A regular expression as `re.match` takes it.

    `^(?!x).*$` in front of all the rest is read, too: that is how checkpoints say "all but x".

    Raises:
        ExpressionError: it is none, or uses what is not read.
    """
    require_short(text)
    reader = _Reader(text)
    plain = text.removeprefix("^")
    if plain.startswith("(?!"):
        reader = _Reader(text, len(text) - len(plain) + 3)
        branches = reader.alternatives()
        reader.take(")")
        if text[reader.position :] not in ("", "$", ".*", ".*$"):
            reader.refuse("has more behind (?!...) than .*")
        return Expression(_anchored(branches), negated=True)
    branches = reader.alternatives()
    if reader.position < len(text):
        reader.refuse("is not a regular expression")
    return Expression(_anchored(branches))


def _anchored(branches: list[tuple[Item, ...]]) -> tuple[Branch, ...]:
    """The branches without the marks of their start and end, and what need not be there beyond."""
    found = []
    for items in branches:
        start = 1 + max((i for i, item in enumerate(items) if item is START), default=-1)
        end = next((i for i, item in enumerate(items) if item is END), len(items))
        beyond = [*items[:start], *items[end:]]
        if any(not item.optional and item is not START for item in beyond) or end < start:
            raise ExpressionError("has ^ or $ in its middle, which is not read")
        found.append(Branch(items[start:end], whole=end < len(items)))
    return tuple(found)


@dataclass(slots=True)
class _Cursor:
    """Walks a regular expression from left to right, and reads what stands for one character."""

    text: str
    position: int = 0

    def refuse(self, why: str) -> NoReturn:
        raise ExpressionError(why)

    def take(self, wanted: str) -> None:
        if not self.text.startswith(wanted, self.position):
            self.refuse("is not a regular expression")
        self.position += len(wanted)

    def next(self) -> str:
        """The next character, which must be there."""
        if self.position >= len(self.text):
            self.refuse("is not a regular expression")
        self.position += 1
        return self.text[self.position - 1]

    def escaped(self, character: str) -> Characters:
        """What a backslash and this character stand for."""
        if character.lower() in KINDS:
            return Characters(kinds=(character,))
        if character.isalnum():
            self.refuse(f"has \\{character}, which is not read")
        return only(character)

    def characters(self) -> Characters:
        """A set, from behind its `[`."""
        negated = self.text.startswith("^", self.position)
        self.position += negated
        ranges: list[tuple[str, str]] = []
        kinds: list[str] = []
        for found in self._members():
            ranges += found.ranges
            kinds += found.kinds
        return Characters(tuple(ranges), tuple(kinds), negated)

    def _members(self) -> Iterator[Characters]:
        first = True
        while (character := self.next()) != "]" or first:
            first = False
            member = self._member(character)
            ends = self.text.startswith("-]", self.position)
            if not ends and self.text.startswith("-", self.position):
                self.position += 1
                far = self._member(self.next())
                if member.kinds or far.kinds or member.ranges[0][0] > far.ranges[0][0]:
                    self.refuse("is not a regular expression")
                member = Characters(((member.ranges[0][0], far.ranges[0][0]),))
            yield member

    def _member(self, character: str) -> Characters:
        if character == "\\":
            return self.escaped(self.next())
        return only(character)


@dataclass(slots=True)
class _Reader(_Cursor):
    """Writes out the groups and alternatives of a regular expression."""

    depth: int = 0

    def alternatives(self) -> list[tuple[Item, ...]]:
        """What stands between two parentheses, written out."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.refuse("is nested too deeply")
        branches = self._sequence()
        while self.text.startswith("|", self.position):
            self.position += 1
            branches = branches + self._sequence()
        self._require_few(branches)
        self.depth -= 1
        return branches

    def _sequence(self) -> list[tuple[Item, ...]]:
        branches: list[tuple[Item, ...]] = [()]
        same: list[Item] = []  # in all branches alike
        while self.position < len(self.text) and self.text[self.position] not in "|)":
            following = self._quantified()
            if len(following) == 1:
                same += following[0]
            else:
                branches = self._followed(branches, [(*same, *more) for more in following])
                same = []
            if len(same) > MAX_ITEMS:
                self.refuse("repeats too often")
        return self._followed(branches, [tuple(same)])

    def _followed(
        self, branches: list[tuple[Item, ...]], following: list[tuple[Item, ...]]
    ) -> list[tuple[Item, ...]]:
        if len(branches) * len(following) > MAX_BRANCHES:
            self.refuse(f"has more than {MAX_BRANCHES} alternatives, written out")
        found = [(*a, *b) for a, b in product(branches, following)]
        self._require_few(found)
        return found

    def _require_few(self, branches: list[tuple[Item, ...]]) -> None:
        if len(branches) > MAX_BRANCHES or sum(map(len, branches)) > MAX_ITEMS:
            self.refuse(f"has more than {MAX_BRANCHES} alternatives, written out")

    def _quantified(self) -> list[tuple[Item, ...]]:
        found = self._atom()
        bounds = self._bounds()
        if bounds is None:
            return found
        low, high = bounds
        one = found[0][0] if len(found) == 1 and len(found[0]) == 1 else None
        if self.text[self.position : self.position + 1] == "?":
            self.position += 1  # as few as possible: that changes no answer
        if self.text[self.position : self.position + 1] in ("*", "+", "{"):
            self.refuse("repeats a repetition, which is not read")
        if one is START or one is END:
            self.refuse("repeats ^ or $, which is not read")
        if one is None or one.optional or one.repeated:
            if (low, high) != (0, 1):
                self.refuse("repeats a group, which is not read")
            return [*found, ()]
        if high is None:
            ends = [one._replace(optional=low == 0, repeated=True)]
            return [(*[one] * (low - 1), *ends)]
        return [(*[one] * low, *[one._replace(optional=True)] * (high - low))]

    def _bounds(self) -> tuple[int, int | None] | None:
        """How often what stands before may be repeated; None where nothing says."""
        sign = self.text[self.position : self.position + 1]
        if sign in ("?", "*", "+"):
            self.position += 1
            return {"?": (0, 1), "*": (0, None), "+": (1, None)}[sign]
        if sign != "{":
            return None
        inside, closed, _ = self.text[self.position + 1 :].partition("}")
        low, comma, high = inside.partition(",")
        if not closed or not (low + high).isdecimal() or not (low + high).isascii():
            self.refuse("has a { that repeats nothing, which is not read")
        if max(len(low), len(high)) > 3:
            self.refuse("repeats too often")
        self.position += len(inside) + 2
        least = int(low or 0)
        most = least if not comma else int(high) if high else None
        if most is not None and most < least:
            self.refuse("is not a regular expression")
        return least, most

    def _atom(self) -> list[tuple[Item, ...]]:
        character = self.next()
        if character == "(":
            if self.text.startswith("?", self.position):
                if not self.text.startswith("?:", self.position):
                    self.refuse("looks around, refers back or sets flags, which is not read")
                self.position += 2
            branches = self.alternatives()
            self.take(")")
            return branches
        if character in "*+?{":
            self.refuse("is not a regular expression")
        if character == "[":
            return [(Item(self.characters()),)]
        return [({".": Item(ANY), "^": START, "$": END}.get(character) or self._plain(character),)]

    def _plain(self, character: str) -> Item:
        if character != "\\":
            return Item(only(character))
        escaped = self.next()
        if escaped in "AZ":
            return START if escaped == "A" else END
        return Item(self.escaped(escaped))
