"""Which pages of a checkpoint a process has read, told by the kernel (/proc/self/pagemap)."""

from __future__ import annotations

import json
import mmap
from itertools import pairwise
from pathlib import Path

PRESENT = 1 << 63
ENTRY_BYTES = 8


def pages_read(file: Path) -> dict[str, tuple[int, int]]:
    """For each tensor of a safetensors file: its pages that this process has touched, of how many.

    The file must still be mapped. A touch brings its neighbours along, as far as they are in the
    page cache (fault-around, 64 KiB on Linux), so that an untouched tensor may show a page or two.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    start, mapped = _mapped(file)
    present = _present(start, mapped)
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        pages = present[first // mmap.PAGESIZE : -(-last // mmap.PAGESIZE)]
        found[name] = sum(pages), len(pages)
    return found


def _mapped(file: Path) -> tuple[int, int]:
    """Where the whole file lies in this process's memory: first address and length in bytes."""
    regions = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file.resolve())):
            first, last = (int(address, 16) for address in line.split()[0].split("-"))
            regions.append((first, last))
    assert regions, f"{file} is not mapped"
    assert all(a[1] == b[0] for a, b in pairwise(regions))
    return regions[0][0], regions[-1][1] - regions[0][0]


def _present(start: int, length: int) -> list[bool]:
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(start // mmap.PAGESIZE * ENTRY_BYTES)
        entries = pagemap.read(length // mmap.PAGESIZE * ENTRY_BYTES)
    words = memoryview(entries).cast("Q")
    return [bool(word & PRESENT) for word in words]
