"""What the text of a safetensors header says; `safetensors.py` checks whether it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from vllm_layershard.models.scanner import Scanner

MAX_METADATA: Final = 1 << 20
"""Characters of free text; what is known takes a few hundred."""

_MAX_SIZE: Final = 1 << 63
_MAX_ENTRY: Final = 2048
_S = r"[ \t\n\r]*+"
_INTEGER = r"(0|[1-9]\d{0,19}+)"
_SIZE = r"(?:0|[1-9]\d{0,18}+)"
_USUAL = re.compile(
    rf'{_S}"([^"\\\x00-\x1f]*+)"{_S}:{_S}\{{{_S}"dtype"{_S}:{_S}"(\w{{1,16}}+)"{_S},'
    rf'{_S}"shape"{_S}:{_S}\[{_S}((?:{_SIZE}{_S}(?:,{_S}{_SIZE}{_S}){{0,64}}+)?)\]{_S},'
    rf'{_S}"data_offsets"{_S}:{_S}\[{_S}{_INTEGER}{_S},{_S}{_INTEGER}{_S}\]{_S}\}}{_S}([,}}])',
    re.ASCII,
)
"""A tensor's entry as every writer known writes it."""

_ENTRY = re.compile(r"\{[^{}]*+\}")
_PAIRS = json.JSONDecoder(object_pairs_hook=list)
_KEYS: Final = {"dtype", "shape", "data_offsets"}


def entries(scanner: Scanner) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
    """Name, dtype, shape, start and end of each tensor.

    Raises:
        ModelError: the text is no header; raised while iterating.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    has_metadata = False
    scanner.take("{")
    if scanner.peek() == "}":
        scanner.take("}")
        scanner.end()
        return
    while True:
        usual = _USUAL.match(scanner.text, scanner.position)
        if usual is not None and usual[1] != "__metadata__":
            name, dtype, text, start, end, after = usual.groups()
            if text not in shapes:
                shapes[text] = tuple(map(int, text.split(","))) if text else ()
            yield name, dtype, shapes[text], int(start), int(end)
            scanner.position = usual.end()
        else:
            name = scanner.string()
            scanner.take(":")
            if name == "__metadata__" and has_metadata:
                scanner.fail("has __metadata__ twice")
            elif name == "__metadata__":
                has_metadata = True
                _skip_metadata(scanner)
            else:
                yield (name, *_unusual(name, scanner))
            after = scanner.take(",}")
        if after == "}":
            scanner.end()
            return


def _unusual(name: str, scanner: Scanner) -> tuple[str, tuple[int, ...], int, int]:
    """An entry with its keys in another order, or no entry at all."""
    scanner.peek()
    entry = _ENTRY.match(scanner.text, scanner.position)
    pairs: Any = None
    if entry is not None and len(entry[0]) <= _MAX_ENTRY:
        try:
            pairs = _PAIRS.decode(entry[0])
        except (ValueError, RecursionError):
            pairs = None
    found = dict(pairs) if pairs is not None else {}
    offsets = found.get("data_offsets")
    if not (
        entry is not None
        and len(found) == len(pairs or ())
        and found.keys() == _KEYS
        and isinstance(found["dtype"], str)
        and _are_sizes(found["shape"])
        and isinstance(offsets, list)
        and _are_sizes(offsets)
        and len(offsets) == 2
    ):
        scanner.fail(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    scanner.position = entry.end()
    return found["dtype"], tuple(found["shape"]), offsets[0], offsets[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MAX_SIZE for n in values
    )


def _skip_metadata(scanner: Scanner) -> None:
    """Strings by name; nothing in them is used."""
    until = scanner.position + MAX_METADATA
    for _ in scanner.pairs():
        if scanner.position > until:
            scanner.fail(f"has more than {MAX_METADATA:,} characters of __metadata__")
