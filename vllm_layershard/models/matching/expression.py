"""Expression: what a config says of modules' names, in a form that can be matched at once.

A config.json comes from anywhere, and Python's `re` may take exponential time over an expression.
So only a regular language is read, with its groups written out: `(gate|up)_proj` has two branches.
How one is read: regular.py, wildcard.py. How many are matched together: patterns.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

MAX_LENGTH: Final = 512
"""Characters of an expression's text."""

KINDS: Final[dict[str, Callable[[str], bool]]] = {
    "d": str.isdecimal,
    "w": lambda character: character.isalnum() or character == "_",
    "s": str.isspace,
}


class ExpressionError(Exception):
    """An expression is not read; the text says why, and follows the expression."""


class Characters(NamedTuple):
    """A set of characters: those from one to another, and of kinds; or all but these."""

    ranges: tuple[tuple[str, str], ...] = ()
    kinds: tuple[str, ...] = ()
    negated: bool = False

    def include(self, character: str) -> bool:
        """Whether it is one of them."""
        found = any(low <= character <= high for low, high in self.ranges) or any(
            KINDS[kind.lower()](character) != kind.isupper() for kind in self.kinds
        )
        return found != self.negated


def only(character: str) -> Characters:
    """The set of this one."""
    return Characters(((character, character),))


ANY: Final = Characters(negated=True)
"""Every character. A module's name has no line breaks, which `.` leaves out."""


class Item(NamedTuple):
    """One character of a name: it may be missing, and it may be repeated."""

    characters: Characters
    optional: bool = False
    repeated: bool = False


START: Final = Item(Characters())
END: Final = Item(Characters(), optional=True)
"""Marks of `^` and `$`, by identity."""


class Branch(NamedTuple):
    """Items one after another, from the start of a name; `whole`: up to its end."""

    items: tuple[Item, ...]
    whole: bool


class Expression(NamedTuple):
    """A name matches if one of the branches does; `negated`: if none does."""

    branches: tuple[Branch, ...]
    negated: bool = False


def require_short(text: str) -> None:
    """Refuse a text that would take long to read.

    Raises:
        ExpressionError: it is too long.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"has more than {MAX_LENGTH} characters")
