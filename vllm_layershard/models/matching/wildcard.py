"""Reads a shell's wildcard into an Expression."""

from __future__ import annotations

from vllm_layershard.models.matching.expression import (
    ANY,
    Branch,
    Characters,
    Expression,
    Item,
    only,
    require_short,
)


def read_wildcard(text: str) -> Expression:
    """A shell's wildcard as `fnmatch.fnmatchcase` takes it: the whole name.

    Raises:
        ExpressionError: it is too long.
    """
    require_short(text)
    items, position = [], 0
    while position < len(text):
        character = text[position]
        position += 1
        end = _end_of_set(text, position) if character == "[" else -1
        if character == "*":
            items.append(Item(ANY, optional=True, repeated=True))
        elif character == "?":
            items.append(Item(ANY))
        elif end >= 0:
            items.append(Item(_set(text[position:end])))
            position = end + 1
        else:
            items.append(Item(only(character)))
    return Expression((Branch(tuple(items), whole=True),))


def _end_of_set(text: str, position: int) -> int:
    """Of a wildcard's `[...]`, in which a first `]` is one of the characters; -1 if it is none."""
    start = position + (text[position : position + 1] == "!")
    return text.find("]", start + (text[start : start + 1] == "]"))


def _set(text: str) -> Characters:
    negated = text.startswith("!")
    text = text.removeprefix("!")
    ranges, position = [], 0
    while position < len(text):
        far = position + 2 if text[position + 1 : position + 2] == "-" else position
        if far >= len(text):
            far = position
        ranges.append((text[position], text[far]))
        position = far + 1
    return Characters(tuple(ranges), negated=negated)
