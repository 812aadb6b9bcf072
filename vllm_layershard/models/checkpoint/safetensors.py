"""Safetensors: what the header of a file says of its tensors, believed only where it adds up.

A file is 8 bytes (the header's length, little endian), the header (JSON), and the data.
Source: the format as huggingface/safetensors describes it; its reference implementation, too,
refuses holes, overlaps, and data that the header does not speak of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import prod
from typing import Any, Final, NamedTuple

from vllm_layershard.models.scanner import Scanner, decoded

PREFIX_BYTES: Final = 8
"""The length of the length."""

MAX_HEADER_BYTES: Final = 8 << 20
"""The reference implementation's limit is 100 MB; the largest header known is under 3 MB."""

MAX_METADATA: Final = 1 << 20
"""Characters of free text; what is known takes a few hundred."""

DTYPE_BITS: Final[dict[str, int]] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "I8": 8,
    "U8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits of one element. Source: safetensors 0.8, `Dtype`."""

_MAX_SIZE: Final = 1 << 63
_MAX_DIMENSIONS: Final = 64
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


class Stored(NamedTuple):
    """One tensor in a file. `dtype` in the format's words (`F8_E4M3`); `shape` in elements.

    A tuple, because a model may have 200,000 of them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def header_bytes(prefix: bytes, file_bytes: int, where: str) -> int:
    """The length of the header, from the first 8 bytes of a file of `file_bytes`.

    Raises:
        ModelError: the file is too short for it, or it is longer than is read.
    """
    scanner = Scanner("", where)
    if len(prefix) < PREFIX_BYTES:
        scanner.fail(f"is cut short: it has {file_bytes:,} bytes, no header fits in")
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if length > file_bytes - PREFIX_BYTES:
        scanner.fail(
            f"is cut short or no safetensors file: its header would take {length:,} bytes, the "
            f"file has {file_bytes:,}"
        )
    if length > MAX_HEADER_BYTES:
        scanner.fail(f"has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
    return length


def parse_header(header: bytes, data_bytes: int, where: str) -> Iterator[Stored]:
    """The tensors of a file whose data, after the header, takes `data_bytes`.

    Raises:
        ModelError: not the format, a name twice, an unknown dtype, bytes that are not shape times
            dtype, holes, overlaps, or another length of the data; raised while iterating.
    """
    scanner = Scanner(decoded(header, where), where)
    seen: set[str] = set()
    spans: list[tuple[int, int]] = []
    for name, dtype, shape, start, end in _entries(scanner):
        if name in seen:
            scanner.fail(f"tensor {name!r} stands there twice")
        seen.add(name)
        if start > end or end > data_bytes:
            scanner.fail(
                f"tensor {name!r} would lie from byte {start:,} to {end:,} of {data_bytes:,}"
            )
        bits = DTYPE_BITS.get(dtype)
        if bits is None:
            scanner.fail(f"tensor {name!r}: dtype {dtype!r} is not known")
        if len(shape) > _MAX_DIMENSIONS:
            scanner.fail(f"tensor {name!r} has {len(shape)} dimensions")
        if prod(shape) * bits != (end - start) * 8:
            scanner.fail(
                f"tensor {name!r}: {dtype} of shape {list(shape)} does not take the "
                f"{end - start:,} bytes that data_offsets give it"
            )
        spans.append((start, end))
        yield Stored(name, dtype, shape, end - start)
    _check_spans(spans, data_bytes, scanner)


def _check_spans(spans: list[tuple[int, int]], data_bytes: int, scanner: Scanner) -> None:
    spans.sort()
    reached = 0
    for start, end in spans:
        if start != reached:
            what = "overlap" if start < reached else "leave a hole"
            scanner.fail(f"tensors {what} at byte {min(start, reached):,} of the data")
        reached = end
    if reached != data_bytes:
        scanner.fail(f"its tensors take {reached:,} bytes, its data has {data_bytes:,}")


def _entries(scanner: Scanner) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
    """Name, dtype, shape, start and end of each tensor."""
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
