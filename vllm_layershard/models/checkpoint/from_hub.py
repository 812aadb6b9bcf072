"""Fetches the safetensors headers of a repository, by range requests, without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

MAX_SHARDS: Final = 512
"""Two requests each: more of them is no way to ask a public server."""

_REMEDY = "plan without --exact"

Progress = Callable[[int, int], None]
"""Called with how many of how many files have been asked for."""


def fetch_checkpoint(name: str, revision: str, progress: Progress) -> tuple[Checkpoint, str]:
    """The checkpoint of a repository at a revision, and the commit or revision that it is of.

    Raises:
        UnknownModelError: offline, no network, no access, or no safetensors files there.
        ModelError: a header is broken, or the server does not send the parts asked for.
    """
    counts, commit = _counts(name, revision)
    if len(counts) > MAX_SHARDS:
        raise ModelError(
            f"{name}: has {len(counts):,} files, --exact asks for {MAX_SHARDS}; {_REMEDY}"
        )
    asked = 0

    def header_of(file: str) -> Header:
        nonlocal asked, commit
        progress(asked, len(counts))
        asked += 1
        where = f"{name}: {file}"
        first = fetch(name, commit or revision, file, PREFIX_BYTES, (0, PREFIX_BYTES))
        commit = commit or first.commit
        length = header_bytes(first.body, first.file_bytes, where)
        end = PREFIX_BYTES + length
        rest = fetch(name, commit or revision, file, length, (PREFIX_BYTES, end))
        if rest.file_bytes != first.file_bytes:
            raise ModelError(f"{where}: changed while it was read")
        return Header(rest.body, first.file_bytes - end)

    checkpoint = gather(counts, header_of, lambda file: f"{name}: {file}", _REMEDY)
    progress(asked, len(counts))
    return checkpoint, commit or revision


def _counts(name: str, revision: str) -> tuple[Mapping[str, int | None], str | None]:
    """The files, with their numbers of tensors where there is an index, and the commit."""
    try:
        fetched = fetch(name, revision, INDEX, MAX_INDEX_BYTES)
    except NoSuchFileError:
        return {SINGLE: None}, None
    return dict(parse_weight_map(fetched.body, f"{name}: {INDEX}")), fetched.commit
