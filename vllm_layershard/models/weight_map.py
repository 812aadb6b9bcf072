"""WeightMap: the files that `model.safetensors.index.json` names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from vllm_layershard.errors import ModelError
from vllm_layershard.models.scanner import Scanner, decoded

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
"""What the file is called where there is but one."""

MAX_INDEX_BYTES: Final = 24 << 20
MAX_FILES: Final = 4096

_FILE = re.compile(r"[\w-][\w.-]{0,199}\.safetensors", re.ASCII)
_NESTING: Final = 32


def parse_weight_map(raw: bytes, where: str) -> Mapping[str, int]:
    """File name -> how many tensors the index puts into it, in the order of the names.

    Raises:
        ModelError: not the format, a tensor twice, too many files, or a name that is not that of
            a file beside the index.
    """
    if len(raw) > MAX_INDEX_BYTES:
        raise ModelError(f"{where}: is larger than {MAX_INDEX_BYTES:,} bytes")
    scanner = Scanner(decoded(raw, where), where)
    del raw
    files: dict[str, int] | None = None
    for key in scanner.names():
        if key != "weight_map":
            _skip(scanner, _NESTING)
        elif files is None:
            files = _files(scanner)
        else:
            scanner.fail("has two weight_maps")
    scanner.end()
    if not files:
        scanner.fail("names no files in weight_map")
    return dict(sorted(files.items()))


def _files(scanner: Scanner) -> dict[str, int]:
    files: dict[str, int] = {}
    seen: set[str] = set()
    for name in scanner.names():
        if name in seen:
            scanner.fail(f"names tensor {name!r} twice")
        seen.add(name)
        file = scanner.string()
        if file not in files:
            if not _FILE.fullmatch(file):
                scanner.fail(f"{file!r} is not the name of a safetensors file beside it")
            if len(files) == MAX_FILES:
                scanner.fail(f"names more than {MAX_FILES:,} files")
            files[file] = 0
        files[file] += 1
    return files


_SCALAR = re.compile(r"-?\d[\d.eE+-]*+|true|false|null", re.ASCII)


def _skip(scanner: Scanner, depth: int) -> None:
    """Any value: other keys hold the total size and free text."""
    if not depth:
        scanner.fail("is nested too deeply")
    opening = scanner.peek()
    if opening == '"':
        scanner.string()
    elif opening == "{":
        for _ in scanner.names():
            _skip(scanner, depth - 1)
    elif opening == "[":
        scanner.take("[")
        if scanner.peek() == "]":
            scanner.take("]")
            return
        while True:
            _skip(scanner, depth - 1)
            if scanner.take(",]") == "]":
                return
    else:
        scalar = _SCALAR.match(scanner.text, scanner.position)
        if scalar is None:
            scanner.fail(f"is not valid JSON at character {scanner.position}")
        scanner.position = scalar.end()
