"""What the header of a safetensors file says of its tensors, believed only where it adds up.

A file is 8 bytes (the header's length, little endian), the header (JSON), and the data.
Source: the format as huggingface/safetensors describes it; its reference implementation, too,
refuses holes, overlaps, and data that the header does not speak of.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Final, NamedTuple

from vllm_layershard.models.checkpoint.entries import entries
from vllm_layershard.models.scanner import Scanner, decoded

PREFIX_BYTES: Final = 8
"""The length of the length."""

MAX_HEADER_BYTES: Final = 8 << 20
"""The reference implementation's limit is 100 MB; the largest header known is under 3 MB."""

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

_MAX_DIMENSIONS: Final = 64


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
    for name, dtype, shape, start, end in entries(scanner):
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
