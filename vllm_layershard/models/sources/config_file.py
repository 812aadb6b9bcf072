"""ConfigFile: a config.json, read and looked into with one clear message for every fault."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from vllm_layershard.bounded_file import AbsentError, UnreadableError, json_fault, read_bounded
from vllm_layershard.errors import ModelError, UnknownModelError

MAX_FILE_BYTES: Final = 8 << 20
"""The largest config.json known has 3.1 MB: nvidia/MiniMax-M3-NVFP4 names 22,422 modules in it."""

_MAX_SECTIONS: Final = 1 << 17
_MAX_VALUES: Final = 1 << 19
"""What json builds takes a few hundred bytes a section, and a hundred a value."""


class ConfigFile(NamedTuple):
    """The top-level object of a config.json, with where it came from for the messages."""

    where: str
    values: Mapping[str, Any]

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise a ModelError that names the file and the key."""
        raise ModelError(f"{self.where}: {key}: {problem}")

    def get(self, key: str) -> Any:
        """The value of a key, or None: an absent key and a null are the same to a model."""
        return self.values.get(key)

    def integer(self, key: str, low: int = 1, high: int = 1 << 20) -> int:
        """A whole number within bounds; the key must be there."""
        value = self.get(key)
        if value is None:
            self.fail(key, f"is missing; a whole number from {low} to {high:,} is needed")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(key, f"{shown(value)} is not a whole number from {low} to {high:,}")
        return value

    def optional_integer(self, key: str, low: int = 1, high: int = 1 << 20) -> int | None:
        """A whole number within bounds, or None where the key is absent or null."""
        return None if self.get(key) is None else self.integer(key, low, high)

    def boolean(self, key: str) -> bool:
        """True or false; false where the key is absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.fail(key, f"{shown(value)} is neither true nor false")
        return bool(value)

    def integers(self, key: str) -> frozenset[int]:
        """A list of whole numbers; empty where the key is absent or null."""
        value = self.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) for item in value
        ):
            self.fail(key, f"{shown(value)} is not a list of whole numbers")
        return frozenset(value)

    def string(self, key: str) -> str | None:
        """A string, or None where the key is absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(key, f"{shown(value)} is not a string")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; () where the key is absent or null."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(key, f"{shown(value)} is not a list of strings")
        return tuple(value)

    def section(self, key: str) -> ConfigFile | None:
        """A nested object as a ConfigFile of its own, or None where it is absent or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, f"{shown(value)} is not an object")
        return ConfigFile(where=f"{self.where}: {key}", values=value)


def read_config(path: Path) -> ConfigFile:
    """Read a config.json: `path` is the file, of any name, or a directory that holds one.

    Raises:
        UnknownModelError: there is no such file.
        ModelError: it cannot be read, or does not hold a JSON object.
    """
    where = "the directory of a model, or the path of its config.json"
    directory = path if os.path.isdir(path) else None
    path = path if directory is None else directory / "config.json"
    try:
        raw = read_bounded(path, MAX_FILE_BYTES)
    except AbsentError:
        if directory is not None:
            raise UnknownModelError(
                f"{directory}: the directory holds no config.json; give {where}"
            ) from None
        raise UnknownModelError(f"{path}: no such file or directory; give {where}") from None
    except UnreadableError as error:
        raise ModelError(f"{path}: {error}") from None
    return parse_config(raw, str(path))


def parse_config(raw: bytes, where: str) -> ConfigFile:
    """Parse the bytes of a config.json.

    Raises:
        ModelError: not UTF-8, not JSON, not an object, or more values than any known one has.
    """
    if raw.count(b"[") + raw.count(b"{") > _MAX_SECTIONS or raw.count(b",") > _MAX_VALUES:
        raise ModelError(
            f"{where}: has more than {_MAX_SECTIONS:,} lists and objects, or more than "
            f"{_MAX_VALUES:,} values: not a config.json"
        )
    try:
        values = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ModelError(f"{where}: is not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        deep = "is not valid JSON: it is nested too deeply"
        what = json_fault(error) if isinstance(error, ValueError) else deep
        raise ModelError(f"{where}: {what}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{where}: holds {shown(values)} where a JSON object was expected")
    return ConfigFile(where=where, values=values)


def shown(value: Any) -> str:
    """The value as JSON, cut to a length that fits a message."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of very many digits"
    return text if len(text) <= 60 else text[:57] + "..."
