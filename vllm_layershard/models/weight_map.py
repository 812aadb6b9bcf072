"""WeightMap: the files that `model.safetensors.index.json` names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from vllm_layershard.errors import ModelError
from vllm_layershard.models.scanner import Scanner, decoded

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
"""What the file is called where there is but one."""

MAX_INDEX_BYTES: Final = 24 << 20
MAX_FILES: Final = 4096

_PAIR = re.compile(
    r'[ \t\n\r]*+,[ \t\n\r]*+"([^"\\\x00-\x1f]*+)"'
    r'[ \t\n\r]*+:[ \t\n\r]*+"([^"\\\x00-\x1f]*+)"'
)
_FILE = re.compile(r"[\w-][\w.-]{0,199}\.safetensors", re.ASCII)


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
            scanner.skip()
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
    for name, file in _pairs(scanner):
        if name in seen:
            scanner.fail(f"names tensor {name!r} twice")
        seen.add(name)
        if file not in files:
            if not _FILE.fullmatch(file):
                scanner.fail(f"{file!r} is not the name of a safetensors file beside it")
            if len(files) == MAX_FILES:
                scanner.fail(f"names more than {MAX_FILES:,} files")
            files[file] = 0
        files[file] += 1
    return files


def _pairs(scanner: Scanner) -> Iterator[tuple[str, str]]:
    """Tensor and file; runs of the usual spelling are read by one expression."""
    for name in scanner.names():
        yield name, scanner.string()
        for pair in iter(lambda: _PAIR.match(scanner.text, scanner.position), None):
            scanner.position = pair.end()
            yield pair[1], pair[2]
