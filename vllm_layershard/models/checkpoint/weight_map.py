"""The files that `model.safetensors.index.json` names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from vllm_layershard.models.scanner import Scanner, decoded

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
"""What the file is called where there is but one."""

MAX_INDEX_BYTES: Final = 24 << 20
MAX_FILES: Final = 4096

_FILE = re.compile(r"[\w-][\w.-]{0,199}\.safetensors", re.ASCII)


def parse_weight_map(raw: bytes, where: str) -> Mapping[str, int]:
    """File name -> how many tensors the index puts into it, in the order of the names.

    Raises:
        ModelError: not the format, a tensor twice, too many files, or a name that is not that of
            a file beside the index.
    """
    scanner = Scanner(decoded(raw, where), where)
    del raw  # the caller keeps no reference: the bytes and the text are not held together
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
    for name, file in scanner.pairs():
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
