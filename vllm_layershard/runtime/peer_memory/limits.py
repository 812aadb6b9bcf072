"""Limit: how much more memory a process may have, and how many files; as the kernel says.

Note [What counts as free]
Shared memory is charged to the memory cgroup of who touches it first, and to every cgroup above.
What a cgroup's processes have read from files is charged, too, and dropped when memory is wanted:
it counts as free. Otherwise a checkpoint in the page cache would look like memory in use. Swap
does not count: weights are to be read in every forward.

Whatever cannot be read limits nothing here. Sources: the kernel's Documentation, proc(5),
admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

SHARED_MEMORY = "/dev/shm"

_NO_LIMIT = 1 << 62
"""Version 1 says "none" by the largest number of pages that it can count."""


_ESCAPED = re.compile(r"\\([0-7]{3})")
"""As the kernel writes a blank in a path."""


class Limit(NamedTuple):
    """`free` bytes are left under the limit `name`. Processes with the same `key` share it."""

    name: str
    key: str
    free: int
    remedy: str


class _Hierarchy(NamedTuple):
    """The files of one version of memory cgroups, and how they count what can be dropped."""

    limit: str
    usage: str
    droppable: tuple[str, ...]


_V2 = _Hierarchy("memory.max", "memory.current", ("active_file", "inactive_file"))
_V1 = _Hierarchy(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def memory_limits(root: Path = Path("/")) -> list[Limit]:
    """What bounds the shared memory that this process can make; `root` is where its node's is."""
    found = [*_shared_memory(root)]
    with suppress(ValueError, LookupError):  # a line of another form
        found.extend(_cgroups(root))
    return found


def descriptors_left(root: Path = Path("/")) -> int | None:
    """How many files this process may open beside those that it has open."""
    for line in _lines(root / "proc/self/limits"):
        if line.startswith("Max open files"):
            try:
                soft, *_ = line.removeprefix("Max open files").split()
                return int(soft) - len(os.listdir(root / "proc/self/fd"))
            except (OSError, ValueError):  # a ValueError: "unlimited"
                return None
    return None


def _shared_memory(root: Path) -> Iterator[Limit]:
    directory = root / SHARED_MEMORY.lstrip("/")
    try:
        found, device = os.statvfs(directory), os.stat(directory).st_dev
    except OSError:
        return
    boot = "".join(_lines(root / "proc/sys/kernel/random/boot_id"))
    yield Limit(
        SHARED_MEMORY,
        f"{boot} {SHARED_MEMORY} {device}",
        found.f_bavail * found.f_frsize,
        "enlarge it (docker run --shm-size)",
    )


def _cgroups(root: Path) -> Iterator[Limit]:
    """Those of this process's memory cgroup and of all above it that it can see."""
    boot = "".join(_lines(root / "proc/sys/kernel/random/boot_id"))
    try:
        namespace = os.readlink(root / "proc/self/ns/cgroup")
    except OSError:
        namespace = ""
    for mount, path, files in _own_cgroups(root):
        for place in (path, *path.parents):
            directory = root / mount.lstrip("/") / str(place).lstrip("/")
            if files is _V1 and place != path and not _is_hierarchical(directory):
                break
            free = _free(directory, files)
            if free is not None:
                name = str(PurePosixPath(mount) / str(place).lstrip("/") / files.limit)
                remedy = "raise it (docker run --memory)"
                yield Limit(name, f"{boot} {namespace} {name}", free, remedy)


def _own_cgroups(root: Path) -> Iterator[tuple[str, PurePosixPath, _Hierarchy]]:
    """Where memory cgroups are mounted, and this process's below it; of v1, of v2, or of both."""
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        kind, files = ("cgroup", _V1) if controllers else ("cgroup2", _V2)
        for top, mount, of_kind, options in mounts:
            if of_kind == kind and (files is _V2 or "memory" in options):
                yield mount, _below(top, path), files
                break


def _below(top: str, path: str) -> PurePosixPath:
    """A cgroup's path below what is mounted; the mount itself where it lies elsewhere.

    A container without a cgroup namespace of its own sees the node's path, and mounts its part.
    """
    own, mounted = PurePosixPath(path), PurePosixPath(top)
    if own.is_relative_to(mounted) and ".." not in own.parts:
        return PurePosixPath("/") / own.relative_to(mounted)
    return PurePosixPath("/")


def _mounts(root: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Of each mount: the part of its file system, the place, the kind, and its own options."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields = [_ESCAPED.sub(lambda found: chr(int(found[1], 8)), x) for x in line.split()]
        dash = fields.index("-")  # after a number of optional fields
        yield fields[3], fields[4], fields[dash + 1], fields[dash + 3].split(",")


def _is_hierarchical(directory: Path) -> bool:
    """Whether a v1 cgroup bounds those below it, too."""
    return _number(directory / "memory.use_hierarchy") == 1


def _free(directory: Path, files: _Hierarchy) -> int | None:
    """Bytes; None where there is no limit."""
    limit, usage = _number(directory / files.limit), _number(directory / files.usage)
    if limit is None or usage is None or limit >= _NO_LIMIT:
        return None
    counted = dict(line.split(maxsplit=1) for line in _lines(directory / "memory.stat"))
    droppable = sum(int(counted.get(name, 0)) for name in files.droppable)
    return max(0, limit - max(0, usage - droppable))


def _number(file: Path) -> int | None:
    """The number in a file; None if there is none, as in "max"."""
    text = "".join(_lines(file))
    return int(text) if text.isdecimal() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
