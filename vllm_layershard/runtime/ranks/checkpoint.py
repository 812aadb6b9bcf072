"""What a checkpoint's files hold, told in a few bytes, so that ranks can compare before they load.

Note [What is compared]
One rank loads a layer for all. Ranks that were given different checkpoints of one shape would mix
them, and nothing later would tell. So each rank reads its own files: of a safetensors file the
length, the whole header, and a window in many of its tensors, spread over the layers of each kind
of tensor; of any other format the length, and windows spread over the file. Names of files count,
and neither directories, nor times, nor inode numbers do: those differ between nodes. Ranks with one
commit of a hub hold the same by that, and need not have the files yet. Where both have a file, it
is compared all the same: a damaged one is found.

A difference that lies beside every window is not found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vllm_layershard.bounded_file import RegularFile, UnreadableError, opened

WINDOW_BYTES = 512
MOST_WINDOWS = 8192
"""Of all files together: 4 MiB. Each file may have `_LEAST_WINDOWS` all the same."""

PATIENCE_S = 60.0
"""After so long only lengths are told of the files that are left: less than ranks wait."""

_LEAST_WINDOWS = 16
_MOST_HEADER_BYTES = 256 << 20
"""Of all files together. The largest models have some 20 MB."""

_THREADS = 8
"""A network disk answers them together."""

Holding = dict[str, int | str | None]
"""Of one file: `bytes`, `header` and `values`, of which None is not known; or `unreadable`."""

_T = TypeVar("_T")


class Checkpoint(NamedTuple):
    """What one rank is about to load."""

    model: str
    """As its user calls it: a directory, or a name on a hub."""

    commit: str | None
    """Of the hub; None of a directory."""

    files: dict[str, Holding] | None
    """By name; None where they are not on this node yet, or are known to the host alone."""


def holdings(files: Iterable[Path], patience_s: float = PATIENCE_S) -> dict[str, Holding]:
    """What each of these files holds, by its name. Reads a bounded part; raises nothing."""
    paths = sorted(files)
    deadline = time.monotonic() + patience_s
    budget = max(_LEAST_WINDOWS, MOST_WINDOWS // max(1, len(paths)))
    header_bytes_left = _MOST_HEADER_BYTES
    found: dict[str, Holding] = {}
    with ThreadPoolExecutor(_THREADS, "layershard-checkpoint") as pool:
        for path in paths:
            try:
                with opened(path) as file:
                    if time.monotonic() > deadline:
                        found[path.name] = {"bytes": file.nbytes, "header": None, "values": None}
                        continue
                    header = _header(file, header_bytes_left)
                    header_bytes_left -= len(header)
                    windows = _windows(header, file.nbytes, budget)
                    fd = file.stream.fileno()
                    read = pool.map(lambda start, fd=fd: os.pread(fd, WINDOW_BYTES, start), windows)
                    found[path.name] = {
                        "bytes": file.nbytes,
                        "header": _digest([header]),
                        "values": _digest(read),
                    }
            except UnreadableError as error:
                found[path.name] = {"unreadable": str(error)}
            except OSError as error:
                found[path.name] = {"unreadable": f"cannot be read: {error.strerror}"}
    return found


def fault_in(told: Sequence[Mapping[str, Any]]) -> str | None:
    """How the ranks' checkpoints differ from rank 0's, for a user; None if they do not.

    `told` is each rank's `Checkpoint._asdict()`, by global rank: every rank finds the same in it.
    """
    first, *others = (Checkpoint(**document) for document in told)
    differing = ((rank, _difference(first, rank, other)) for rank, other in enumerate(others, 1))
    faults = [f"rank {rank} against rank 0: {how}" for rank, how in differing if how]
    if not faults:
        return None
    return (
        "the ranks of layer sharding were given different checkpoints, whose layers would be "
        f"mixed; give every rank the same files, or the same commit. {' | '.join(faults)}"
    )


def _difference(one: Checkpoint, rank: int, other: Checkpoint) -> str | None:
    same_commit = one.commit is not None and one.commit == other.commit
    if one.files is None or other.files is None:
        alike = one.commit is None and one == other
        if same_commit or alike:
            return None
        return (
            f"{_said(other)} and {_said(one)} cannot be compared before they are loaded: download "
            "the model on every node first"
        )
    names = one.files.keys() | other.files.keys()
    if same_commit:  # which of its files a node has may differ
        names = one.files.keys() & other.files.keys()
    for name in sorted(names):
        how = _how(one.files.get(name), rank, other.files.get(name))
        if how is not None:
            return f"{name} {how} ({_said(other)}; {_said(one)})"
    return None


def _how(one: Holding | None, rank: int, other: Holding | None) -> str | None:
    """The difference between a file of rank 0, `one`, and of another rank."""
    if one is None or other is None:
        return f"is not there on rank {rank if other is None else 0}"
    for on, holding in ((rank, other), (0, one)):
        if "unreadable" in holding and one != other:
            return f"of rank {on} {holding['unreadable']}"
    if one.get("bytes") != other.get("bytes"):
        return f"has {other['bytes']:,} bytes on rank {rank}, {one['bytes']:,} on rank 0"
    for key, what in (("header", "names, types or shapes"), ("values", "values")):
        known = one.get(key) is not None and other.get(key) is not None
        if known and one[key] != other[key]:
            return f"has other {what} on rank {rank} than on rank 0"
    return None


def _said(checkpoint: Checkpoint) -> str:
    commit = "" if checkpoint.commit is None else f" at commit {checkpoint.commit}"
    return f"{checkpoint.model}{commit}"


def _header(file: RegularFile, most_bytes: int) -> bytes:
    """The header of a safetensors file; empty where it is none, or a longer one."""
    nbytes = int.from_bytes(file.read(8), "little")
    return file.read(nbytes) if 0 < nbytes <= min(most_bytes, file.nbytes - 8) else b""


def _windows(header: bytes, nbytes: int, budget: int) -> list[int]:
    """Where to read of a file of `nbytes`."""
    tensors = _tensors(header, nbytes)
    if not tensors:
        last = max(0, nbytes - WINDOW_BYTES)
        return [last * i // (budget - 1) for i in range(budget)]
    kinds: dict[str, list[str]] = {}
    for name in sorted(tensors):
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    share = max(1, budget // len(kinds))
    chosen = [name for kind in kinds.values() for name in _spread(kind, share)]
    return [_within(name, *tensors[name]) for name in _spread(chosen, budget)]


def _within(name: str, start: int, end: int) -> int:
    """A place in a tensor that its name decides: another one in every layer."""
    places = max(1, end - start - WINDOW_BYTES + 1)
    return start + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % places


def _tensors(header: bytes, nbytes: int) -> dict[str, tuple[int, int]]:
    """Where each tensor that has bytes begins and ends in the file; empty if it is no such file."""
    try:
        said = json.loads(header)
        spans = {
            str(name): [8 + len(header) + offset for offset in entry["data_offsets"]]
            for name, entry in said.items()
            if name != "__metadata__"
        }
        return {n: (start, end) for n, (start, end) in spans.items() if 0 <= start < end <= nbytes}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _spread(items: Sequence[_T], count: int) -> Sequence[_T]:
    """At most so many of them, evenly."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]
