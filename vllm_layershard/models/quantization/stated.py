"""Which source states how a model is quantised: the one place that may say that none does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from vllm_layershard.models.sources.beside import (
    BY_HAND,
    DESCRIPTION,
    HF_QUANT,
    MAX_DESCRIPTION_BYTES,
    Beside,
)
from vllm_layershard.models.sources.config_file import (
    MAX_FILE_BYTES,
    ConfigFile,
    parse_config,
    shown,
)

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


def stated_section(config: ConfigFile, beside: Beside) -> ConfigFile | None:
    """The section that vLLM reads, or None where no source states a quantisation.

    The order is vLLM's: config.json's own, hf_quant_config.json, the language model's, and last
    what ModelSlim describes for vllm-ascend.
    Source: vLLM 0.32, transformers_utils/config.py, `get_config`, and
    model_arch_config_convertor.py, `get_quantization_config`.

    Raises:
        ModelError: something states a quantisation where nobody reads it.
        UnknownModelError: the Hub was asked for a file beside config.json and cannot be reached.
    """
    section = config.section("quantization_config") or _beside(beside, HF_QUANT)
    if section is None:
        section = config.section("compression_config") or _of_language_model(config)
    method = section.get("quant_method") if section is not None else None
    if section is None or (isinstance(method, str) and method.lower() == "ascend"):
        contents = beside(DESCRIPTION, MAX_DESCRIPTION_BYTES)
        if contents is not None:
            from vllm_layershard.models.quantization.modelslim import described

            return described(contents.raw, contents.where)
    if section is None:
        _require_none(config, beside)
    return section


def _of_language_model(config: ConfigFile) -> ConfigFile | None:
    text = config.get("text_config")
    if not isinstance(text, dict):
        return None
    inner = ConfigFile(f"{config.where}: text_config", text)
    return inner.section("quantization_config") or inner.section("compression_config")


def _beside(beside: Beside, file: str) -> ConfigFile | None:
    contents = beside(file, MAX_FILE_BYTES)
    return parse_config(contents.raw, contents.where) if contents is not None else None


def _require_none(config: ConfigFile, beside: Beside) -> None:
    """Refuse a model of which anything says that it is quantised."""
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
