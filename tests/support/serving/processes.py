"""Footprint: what the processes of a server hold, as the kernel tells."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SHARED = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of all processes of some process groups: private memory, open files; and all of /dev/shm."""

    processes: int
    memory_bytes: int
    files: int
    shared_bytes: int


def footprint(groups: Iterable[int]) -> Footprint:
    """What the processes of these process groups hold now."""
    wanted = set(groups)
    processes = memory = files = 0
    for pid in alive(wanted):
        with suppress(OSError):  # it may end while it is looked at
            memory += _anonymous_bytes(pid)
            files += len(os.listdir(f"/proc/{pid}/fd"))
            processes += 1
    return Footprint(processes, memory, files, sum(shared_memory().values()))


def alive(groups: Iterable[int]) -> list[int]:
    """The processes of these process groups that have not ended."""
    wanted = set(groups)
    return [pid for pid, group, state in _processes() if group in wanted and state != "Z"]


def named(title: str, groups: Iterable[int]) -> list[int]:
    """The processes of these process groups that bear this title."""
    found = []
    for pid in alive(groups):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().decode().startswith(title):
                found.append(pid)
    return found


def shared_memory() -> dict[str, int]:
    """The named shared memory of this machine: bytes by name."""
    found = {}
    for entry in SHARED.iterdir():
        with suppress(OSError):
            found[entry.name] = entry.stat().st_blocks * 512
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # After the name, which may hold anything: state, parent, process group.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), int(fields[2]), fields[0]


def _anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
