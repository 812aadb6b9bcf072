"""Fetches the safetensors headers of a repository, by range requests, without weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Final

from vllm_layershard.errors import ModelError
from vllm_layershard.models.checkpoint.files import Checkpoint, Header, gather
from vllm_layershard.models.checkpoint.safetensors import PREFIX_BYTES, header_bytes
from vllm_layershard.models.checkpoint.weight_map import (
    INDEX,
    MAX_INDEX_BYTES,
    SINGLE,
    parse_weight_map,
)
from vllm_layershard.models.sources.hub import NoSuchFileError, fetch
from vllm_layershard.models.sources.running import GivenUpError, in_order

MAX_SHARDS: Final = 512
"""Two requests each: more of them is no way to ask a public server."""

AT_ONCE: Final = 8
"""Files that are asked for at a time."""

SECONDS: Final = 120.0
"""For all of them together."""

_REMEDY = "plan without --exact"

Progress = Callable[[int, int], None]
"""Called with how many of how many files have been asked for."""


def fetch_checkpoint(name: str, revision: str, progress: Progress) -> tuple[Checkpoint, str]:
    """The checkpoint of a repository at a revision, and the commit or revision that it is of.

    Raises:
        UnknownModelError: offline, no network, no access, or no safetensors files there.
        ModelError: a header is broken, the server does not send the parts asked for, or not all
            of them in `SECONDS`.
    """
    until = time.monotonic() + SECONDS
    asked = total = 0
    try:
        (counts, commit), *_ = in_order([partial(_counts, name, revision)], 1, until)
        total = len(counts)
        if total > MAX_SHARDS:
            raise ModelError(
                f"{name}: has {total:,} files, --exact asks for {MAX_SHARDS}; {_REMEDY}"
            )

        def header(file: str) -> Header:
            nonlocal commit
            found, said = _header(name, revision, commit, file)
            commit = commit or said
            return found

        calls = [partial(header, file) for file in counts]
        alone = 1 if commit is None else 0  # the first may say of which commit all others are
        headers = chain(in_order(calls[:alone], 1, until), in_order(calls[alone:], AT_ONCE, until))

        def header_of(file: str) -> Header:
            nonlocal asked
            progress(asked, total)
            found = next(headers)
            asked += 1
            return found

        checkpoint = gather(counts, header_of, lambda file: f"{name}: {file}", _REMEDY)
    except GivenUpError:
        raise ModelError(
            f"{name}: the Hub sent {asked} of {total or 'so many'} headers within {SECONDS:g} "
            f"seconds; {_REMEDY}"
        ) from None
    progress(asked, total)
    return checkpoint, commit or revision


def _header(name: str, revision: str, commit: str | None, file: str) -> tuple[Header, str | None]:
    """The header of a file, and the commit that it is of, if that is known or the Hub says it."""
    where = f"{name}: {file}"
    first = fetch(name, commit or revision, file, PREFIX_BYTES, (0, PREFIX_BYTES))
    commit = commit or first.commit
    length = header_bytes(first.body, first.file_bytes, where)
    end = PREFIX_BYTES + length
    rest = fetch(name, commit or revision, file, length, (PREFIX_BYTES, end))
    if rest.file_bytes != first.file_bytes:
        raise ModelError(f"{where}: changed while it was read")
    return Header(rest.body, first.file_bytes - end), commit


def _counts(name: str, revision: str) -> tuple[Mapping[str, int | None], str | None]:
    """The files, with their numbers of tensors where there is an index, and the commit."""
    try:
        fetched = fetch(name, revision, INDEX, MAX_INDEX_BYTES)
    except NoSuchFileError:
        return {SINGLE: None}, None
    return dict(parse_weight_map(fetched.body, f"{name}: {INDEX}")), fetched.commit
