"""Proves that no source states a quantisation: nothing in a config, and no file beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from vllm_layershard.models.sources.beside import BY_HAND, Beside
from vllm_layershard.models.sources.config_file import MAX_FILE_BYTES, ConfigFile, shown

_KEY: Final = re.compile(
    r"quant|gptq|awq|bitsandbytes|bnb|torchao|hqq|modelopt|autoround|loadin[48]bit|"
    r"compressionconfig|compressedtensors|configgroups|weightblocksize|"
    r"(nv|mx)fp[468]|fp[48]|int[48]|w[1-8]a(4|8|16)"
)
"""A key that may state a quantisation, in small letters and digits."""

_LOW: Final = re.compile(r"(nv|mx)?(fp|float|u?int)[1-8](\D|$)")
"""A dtype of at most eight bits."""

_HARMLESS: Final = frozenset({"numquantizers"})
"""Keys that name codebooks of sound."""


def require_none(config: ConfigFile, beside: Beside) -> None:
    """Refuse a model of which anything says that it is quantised.

    Raises:
        ModelError: names the key or the file.
        UnknownModelError: the Hub was asked for a file and cannot be reached.
    """
    for path, value in _statements(config.values):
        config.fail(
            path,
            f"{shown(value)} speaks of a quantisation where vLLM 0.32 reads none, so no source "
            "states the bytes of its weights; move it to quantization_config, or take it out if "
            "they are not quantised",
        )
    for file in BY_HAND:
        contents = beside(file, MAX_FILE_BYTES)
        if contents is not None:
            config.fail(
                "quantization_config",
                f"is missing, and {contents.where} states a quantisation that vLLM 0.32 reads only "
                "with --quantization; copy it into config.json",
            )


def _statements(values: Any) -> Iterator[tuple[str, Any]]:
    """The keys anywhere in a config that state a quantisation, with their values."""
    left: list[tuple[str, Any]] = [("", values)]
    while left:
        path, value = left.pop()
        if isinstance(value, list):
            left.extend((path, item) for item in value if isinstance(item, (dict, list)))
        elif isinstance(value, dict):
            for key, inner in value.items():
                at = f"{path}.{key}" if path else str(key)
                if _speaks(str(key), inner):
                    yield at, inner
                elif isinstance(inner, (dict, list)):
                    left.append((at, inner))


def _speaks(key: str, value: Any) -> bool:
    if value is None or value is False:
        return False
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    if plain in _HARMLESS:
        return False
    if plain.endswith("dtype"):
        return isinstance(value, str) and "cache" not in plain and _LOW.match(value) is not None
    return _KEY.search(plain) is not None
