"""Source: finds a model's config.json by path or name.

Order: a local path, the bundled configs, the Hugging Face cache, the Hub. Nothing but a
config.json is read, and no code of a model repository is ever run.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models.config_file import ConfigFile, read_config

_BUNDLED = Path(__file__).parent / "configs"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, slots=True)
class Found:
    """A config.json with the name to call the model by and the place it was found in."""

    name: str
    source: str
    config: ConfigFile


def bundled_names() -> tuple[str, ...]:
    """The repositories whose configs come with the package."""
    return tuple(sorted(path.stem.replace("--", "/") for path in _BUNDLED.glob("*.json")))


def find(name: str) -> Found:
    """Find a model.

    Raises:
        UnknownModelError: nothing of that name anywhere; says where it was looked for.
        ModelError: it was found, but its config.json cannot be read.
    """
    if _is_path(name):
        return _local(name)
    wanted = name.lower()
    for known in bundled_names():
        if wanted in (known.lower(), known.lower().partition("/")[2]):
            path = _BUNDLED / f"{known.replace('/', '--')}.json"
            return Found(known, f"bundled:{known}", read_config(path))
    if not _REPOSITORY.fullmatch(name):
        raise UnknownModelError(
            f"{name!r} is neither a path, nor a bundled model ({', '.join(bundled_names())}), nor "
            "a Hub name such as 'organisation/model'"
        )
    return _cached(name) or _fetched(name)


def _is_path(name: str) -> bool:
    looks_local = name.endswith(".json") or name.startswith((".", "~", os.sep))
    try:
        return looks_local or name.count("/") > 1 or not name or Path(name).exists()
    except (OSError, ValueError):  # too long, or a NUL: no file has such a name
        return False


def _local(name: str) -> Found:
    if not name:
        raise UnknownModelError("--model is empty; give a path or a name such as DeepSeek-V3")
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise UnknownModelError(f"{name}: there is no such user") from None
    config = read_config(path)
    return Found(name, f"local:{config.where}", config)


def _cached(name: str) -> Found | None:
    """The newest main revision in the Hugging Face cache, if it is there."""
    repository = _cache_directory() / f"models--{name.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text().strip()
        path = repository / "snapshots" / revision / "config.json"
        if not path.is_file():
            return None
    except (OSError, ValueError):
        return None
    return Found(name, f"cache:{name}@{revision[:12]}", read_config(path))


def _cache_directory() -> Path:
    """As huggingface_hub decides it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def _fetched(name: str) -> Found:
    from vllm_layershard.models.hub import fetch_config

    return Found(name, f"hub:{name}@main", fetch_config(name))
