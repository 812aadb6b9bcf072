"""Finds a model's config.json by path or name.

Order: a local path, the Hugging Face cache, the bundled configs, the Hub. Nothing but JSON and
safetensors headers is read, and no code of a model repository is ever run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from vllm_layershard.errors import UnknownModelError
from vllm_layershard.models.sources.beside import (
    PARAMS,
    Beside,
    beside_in,
    beside_on_hub,
    names_in,
    nothing_beside,
)
from vllm_layershard.models.sources.config_file import ConfigFile, read_config
from vllm_layershard.models.sources.hf_cache import snapshot_of
from vllm_layershard.models.sources.provenance import revision_of

_BUNDLED = Path(__file__).parents[1] / "configs"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


_PLAIN: Final = re.compile(r"[\w./ -]*")

_URL: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")

_NEAR: Final = 0.8
"""Two names of which so much is alike differ by a slip of the pen."""

_CONFIG_ALONE: Final = (
    "the cache holds config.json alone: a quantisation that a file beside it states is not seen"
)

_PARAMS_UNSEEN: Final = (
    "the cache holds neither weights nor params.json: a quantisation that the latter states is "
    "not seen"
)


class FoundModel(NamedTuple):
    """A config.json with the name to call the model by and the place it was found in.

    `revision`: the commit of what came from a cache or the Hub; where a bundled config was taken
    from; None for a local path, and where nobody said. `directory` holds the rest of the model,
    None where only a config was given or found. `beside` reads a file that belongs to the config.
    `notes`: what a user should know of the place.
    """

    name: str
    source: str
    config: ConfigFile
    revision: str | None = None
    directory: Path | None = None
    beside: Beside = nothing_beside
    notes: tuple[str, ...] = ()


def bundled_names() -> tuple[str, ...]:
    """The repositories whose configs come with the package."""
    return tuple(sorted(path.stem.replace("--", "/") for path in _BUNDLED.glob("*.json")))


def find(name: str, *, offline: bool = False) -> FoundModel:
    """Find a model; with `offline` the Hub is not asked.

    Raises:
        UnknownModelError: nothing of that name anywhere; says where it was looked for.
        ModelError: it was found, but its config.json cannot be read.
    """
    if _URL.match(name):
        raise UnknownModelError(
            "--model is a URL, and none is read; give a model directory, a config.json, a bundled "
            "name (DeepSeek-V3) or a Hub name such as 'organisation/model'"
        )
    if _is_path(name):
        return _local(name)
    full = _bundled_name(name)
    if full is None and not _REPOSITORY.fullmatch(name):
        raise UnknownModelError(
            f"{_shown(name)!r} is neither a path, nor a bundled model "
            f"({', '.join(bundled_names())}), nor a Hub name such as 'organisation/model'"
            f"{_near(name)}"
        )
    cached = _cached(full or name)
    if cached is not None:
        return cached
    if full is not None:
        return _bundled(full)
    try:
        return _fetched(name, offline)
    except UnknownModelError as error:
        raise UnknownModelError(f"{error}{_near(name)}") from error.__cause__


def _shown(name: str) -> str:
    """As much of a wrong name as is like a name: a query or a user may hold a secret."""
    kept = _PLAIN.match(name)
    assert kept is not None, "it matches nothing, too"
    return name if kept.end() == len(name) else f"{kept[0]}..."


def _near(name: str) -> str:
    """What a slip of the pen may have meant; empty where no bundled name is near."""
    from difflib import get_close_matches  # takes milliseconds that no other command needs

    full = {known.lower(): known for known in bundled_names()}
    short = {known.partition("/")[2]: each for known, each in full.items()}
    digits = _digits(name)  # another number is another model
    names = {
        known: each
        for known, each in (full if "/" in name else short).items()
        if digits in ("", _digits(known))
    }
    found = get_close_matches(name.lower(), names, n=1, cutoff=_NEAR)
    return f"; did you mean {names[found[0]]}?" if found else ""


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def _is_path(name: str) -> bool:
    looks_local = name.endswith(".json") or name.startswith((".", "~", os.sep))
    try:
        return looks_local or name.count("/") > 1 or not name or Path(name).exists()
    except (OSError, ValueError):  # too long, or a NUL: no file has such a name
        return False


def _local(name: str) -> FoundModel:
    if not name:
        raise UnknownModelError("--model is empty; give a path or a name such as DeepSeek-V3")
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise UnknownModelError(f"{name}: there is no such user") from None
    directory = path if _is_directory(path) else None
    belongs = directory is not None or path.name == "config.json"
    beside = beside_in(directory or path.parent) if belongs else nothing_beside
    if directory is not None and _has_params_alone(directory):
        config = _of_params_alone(beside) or read_config(directory)
        where = config.where
    else:
        stated = read_config(path)
        config, where = _served(stated, beside), stated.where
    return FoundModel(name, f"local:{where}", config, directory=directory, beside=beside)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # too long: whoever reads it says so
        return False


def _has_params_alone(directory: Path) -> bool:
    """Whether a directory has no config.json, and Mistral's own file."""
    return not (directory / "config.json").exists() and (directory / PARAMS).is_file()


def _of_params_alone(beside: Beside) -> ConfigFile | None:
    """The config of params.json without a config.json; None: no server would read it."""
    from vllm_layershard.models.sources.params_file import served_config  # few have one

    return served_config(None, beside, whole=True)


def _served(config: ConfigFile, beside: Beside, *, whole: bool = True) -> ConfigFile:
    """The config as vLLM reads it, which takes params.json of Mistral's format before it.

    On the Hub, where files are listed on request only, models of Llama's and Mistral's
    architectures are asked.
    """
    names = names_in(beside)
    if PARAMS not in names if names else not _is_mistral(config, "lama"):
        return config
    from vllm_layershard.models.sources.params_file import served_config  # few have one

    return served_config(config, beside, whole=whole) or config


def _is_mistral(config: ConfigFile, *more: str) -> bool:
    return any(mark in str(config.get("architectures")) for mark in ("istral", "ixtral", *more))


def _bundled_name(name: str) -> str | None:
    """The full name of a bundled model, from its full or short name in any case."""
    wanted = name.lower()
    for known in bundled_names():
        if wanted in (known.lower(), known.lower().partition("/")[2]):
            return known
    return None


def _cached(name: str) -> FoundModel | None:
    found = snapshot_of(name)
    if found is None:
        return None
    directory, revision = found
    beside = beside_in(directory)
    if _has_params_alone(directory):
        stated = config = _of_params_alone(beside) or read_config(directory)
    else:
        stated = read_config(directory)
        config = _served(stated, beside, whole=False)
    source = f"cache:{name}@{revision[:12]}"
    notes: tuple[str, ...] = (_CONFIG_ALONE,)
    if _states_quantization(config) or _holds_more(directory):
        notes = ()
    if _is_mistral(stated) and not notes and PARAMS not in names_in(beside):
        notes = _without_params(directory)
    return FoundModel(name, source, config, revision, directory, beside, notes)


def _without_params(directory: Path) -> tuple[str, ...]:
    """A note where neither weights nor params.json say in which format vLLM would read it."""
    known = any(directory.glob("*.safetensors")) or any(directory.glob("*.bin"))
    return () if known else (_PARAMS_UNSEEN,)


def _states_quantization(config: ConfigFile) -> bool:
    return config.get("quantization_config") is not None


def _holds_more(directory: Path) -> bool:
    """Whether a snapshot holds more than config.json; then it holds what else states something."""
    with os.scandir(directory) as entries:
        return any(entry.name != "config.json" for entry in entries)


def _bundled(name: str) -> FoundModel:
    path = _BUNDLED / f"{name.replace('/', '--')}.json"
    return FoundModel(name, f"bundled:{name}", read_config(path), revision_of(path.name))


def _fetched(name: str, offline: bool) -> FoundModel:
    from vllm_layershard.models.sources.hub import (
        NoSuchFileError,
        fetch_config,
        hub_notes,
        not_asked,
    )

    if offline:
        raise not_asked(name, "config.json", "offline=True")
    commit: str | None = None
    try:
        config, commit = fetch_config(name)
        beside = beside_on_hub(name, commit or "main")
        config = _served(config, beside)
    except NoSuchFileError:
        beside = beside_on_hub(name, "main")
        alone = None if commit else _of_params_alone(beside)
        if alone is None:
            raise
        config = alone
    source = f"hub:{name}@{commit[:12] if commit else 'main'}"
    return FoundModel(name, source, config, commit, beside=beside, notes=hub_notes())
