"""The snapshots that huggingface_hub has downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from vllm_layershard.bounded_file import UnreadableError, read_bounded
from vllm_layershard.models.sources.beside import PARAMS

_MAX_REVISION: Final = 200
_REVISION = re.compile(r"[0-9a-zA-Z][\w-]{0,99}", re.ASCII)


def snapshot_of(name: str) -> tuple[Path, str] | None:
    """The directory of a repository's main revision with a config, and the revision."""
    repository = _cache_directory() / f"models--{name.replace('/', '--')}"
    try:
        revision = read_bounded(repository / "refs" / "main", _MAX_REVISION).decode().strip()
        if not _REVISION.fullmatch(revision):
            return None
        directory = repository / "snapshots" / revision
        if not any((directory / file).is_file() for file in ("config.json", PARAMS)):
            return None
    except (UnreadableError, OSError, ValueError):
        return None
    return directory, revision


def _cache_directory() -> Path:
    """As huggingface_hub decides it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return _expanded(os.environ[variable])
    home = os.environ.get("HF_HOME")
    if home:
        return _expanded(home) / "hub"
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user, or no home
        return Path(path)
