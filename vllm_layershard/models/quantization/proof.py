"""Proves that no source states a quantisation: nothing in a config, and no file beside it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

from vllm_layershard.models.sources.beside import (
    BY_HAND,
    DESCRIPTION,
    HF_QUANT,
    READ_WITH_A_FLAG,
    Beside,
    names_in,
)
from vllm_layershard.models.sources.config_file import MAX_FILE_BYTES, ConfigFile, shown

_KEY: Final = re.compile(
    r"quant|gptq|awq|bitsandbytes|bnb|torchao|hqq|modelopt|autoround|loadin[48]bit|"
    r"compressionconfig|compressedtensors|configgroups|weightblocksize|sparsity|"
    r"activationscheme|ignoredlayers|modulestonotconvert|descact|qgroupsize|zeropoint|packdtype|"
    r"qconfig|quark|aqlm|vptq|higgs|spqr|eetq|exl[23]|mlx|gguf|ggml|bitnet|fouroversix|marlin|ternary|"
    r"(nv|mx)?fp[468]|int[48]|w[n1-8]a(n|4|8|16)"
)
"""A part of a key that may state a quantisation, in small letters and digits."""

_WHOLE: Final = frozenset({"inc", "metal", "sinq", "humming", "ipex", "qat", "compressed"})
"""Keys that are names of methods, and parts of other words."""

_BITS: Final = re.compile(
    r"(w|n|q|num|avg|low|load(in)?|weights?|linear|expert)*(bits?(width)?|precision)"
    r"|(avg)?(bitsper(weight|param)|bpw)"
)
"""A key that counts the bits of a weight."""

_SAID: Final = re.compile(
    r"quant(?!um|i[tl])|(?<![a-z0-9])(q?((nv|mx|h|b)?(fp|float|u?int)|nf|hif|bf)[1-8](?!\d)|"
    r"awq|hqq|quark|aqlm|exl[23]|marlin|torchao|bnb|nvfp|mxfp|int[-_][48](?!\d)|"
    r"w[1-8][-_]?a(fp)?([48](?!\d)|16)|a[48]w[48])|^tq[1-8]_|squeezellm|ternary|"
    r"gptq|gguf|ggml|modelopt|auto.?round|bitsandbytes|compressed.?tensors|llm.?compressor|"
    r"e[2-8]m[0-3](?!\d)|^i?q[1-8](_|$)|^[1-8][ _-]?bits?|quarot"
)
"""A word for a method, or for a format of at most eight bits, in small letters."""

_TYPED: Final = ("dtype", "dtypes", "precision", "weight", "weights", "encoding")
_LOW: Final = re.compile(r"(torch\.)?[a-z]{0,3}?(fp|float|int|[fisu])[1-8](\D|$)")
"""How a dtype of at most eight bits begins, which stands at a key that ends in `_TYPED`."""

_HARMLESS: Final = frozenset({"numquantizers"})
"""Keys that name codebooks of sound."""


_FILE: Final = re.compile(
    r"quant(?!um)|gptq|awq|modelopt|auto.?round|compressed.?tensors|bnb|hqq|nncf|inc_config|"
    r"(?<![a-z0-9])((nv|mx)?fp[468]|int[48]|exl[23]|nf4|e[45]m[23]|q[1-8]_[01k]|"
    r"w[1-8]a(fp)?(4|8|16)|[1-8]-?bit)(?![a-z0-9])|"
    r"^q_?config|svdq|quark"
)
"""A name of a file that states a quantisation, or holds quantised weights."""

_WEIGHTS: Final = (".safetensors", ".safetensors.index.json")
_PACKED: Final = ".gguf"
_ELSE: Final = (".bin", ".pt", ".pth")
"""Weights that vLLM reads where none of `_WEIGHTS` are."""

_KINDS: Final = (".json", ".yaml", ".yml", ".toml", *_WEIGHTS)
_RECIPE: Final = re.compile(r"recipe[^/]*\.(?:yaml|yml|json)")
_STEPS: Final = re.compile(
    rb"quant|gptq|awq|autoround|sparsegpt|num_bits|config_groups|(?:nv|mx)fp[48]|w[1-8]a(?:4|8|16)"
)
"""What a recipe of llm-compressor says of a quantisation; recipes of a training say nothing."""


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
    names = names_in(beside)
    listed = [file for file in names if _is_suspect(file)]
    if not any(file.endswith(".safetensors") for file in names):
        listed += [file for file in names if file.endswith(_ELSE) and _FILE.search(file.lower())]
    if not any(file.endswith((".safetensors", ".bin", ".pt")) for file in names):
        listed += [file for file in names if file.lower().endswith(_PACKED)]
    for file in (*BY_HAND, *sorted({*listed} - {*BY_HAND})):
        _require_silent(config, beside, file)


def _is_suspect(file: str) -> bool:
    """Whether a name speaks of a quantisation, or is that of a recipe."""
    name = file.lower()
    return name.endswith(_KINDS) and (
        _FILE.search(name) is not None or _RECIPE.fullmatch(name) is not None
    )


def _require_silent(config: ConfigFile, beside: Beside, file: str) -> None:
    """Refuse a file that is there, unless it is a recipe that says nothing of a quantisation."""
    name = file.lower()
    if name.endswith((*_WEIGHTS, *_ELSE, _PACKED)):
        where = shown(file)
    else:
        contents = beside(file, MAX_FILE_BYTES)
        if contents is None or (
            _RECIPE.fullmatch(name) and not _STEPS.search(contents.raw.lower())
        ):
            return
        where = contents.where
    if name.startswith(DESCRIPTION.removesuffix(".json")):
        read = f"vllm-ascend reads under the name {DESCRIPTION} alone; give it that name"
    elif name.endswith(HF_QUANT):
        read = f"vLLM 0.32 reads under the name {HF_QUANT} alone; give it that name"
    elif file in READ_WITH_A_FLAG:
        read = "vLLM 0.32 reads only with --quantization; copy it into config.json"
    else:
        read = "vLLM 0.32 does not read; state it in config.json"
    config.fail(
        "quantization_config",
        f"is missing, and {where} states a quantisation that {read}, or take the file away if the "
        "weights are not quantised",
    )


def _statements(values: Any) -> Iterator[tuple[str, Any]]:
    """The keys anywhere in a config that state a quantisation, with their values."""
    left: list[tuple[str, str, Any]] = [("", "", values)]
    while left:
        path, key, value = left.pop()
        if isinstance(value, list):
            for item in value:
                if isinstance(item, (dict, list)):
                    left.append((path, key, item))
                elif _speaks(_plain(key), item):
                    yield path, item
        elif isinstance(value, dict):
            for key, inner in value.items():
                at = f"{path}.{key}" if path else str(key)
                if _speaks(_plain(str(key)), inner):
                    yield at, inner
                elif isinstance(inner, (dict, list)):
                    left.append((at, str(key), inner))


def _plain(key: str) -> str:
    """A key in small letters and digits."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKC", key).lower())


def _speaks(plain: str, value: Any) -> bool:
    if value is None or value is False or plain in _HARMLESS:
        return False
    if "cache" in plain and plain.endswith("dtype"):
        return False
    if isinstance(value, str) and _says(plain, value):
        return True
    if isinstance(value, str) and value.isdecimal():
        value = int(value[:9])
    if isinstance(value, (int, float)) and _BITS.fullmatch(plain):
        return 0 < value < 16
    return plain.removesuffix("config") in _WHOLE or _KEY.search(plain) is not None


def _says(plain: str, value: str) -> bool:
    """Whether a word at a key is one for a quantisation; names and paths say nothing sure."""
    if "cache" in plain or plain.endswith(("path", "name")):
        return False
    low = unicodedata.normalize("NFKC", value).lower()
    if _SAID.search(low) is not None:
        return True
    return plain.endswith(_TYPED) and _LOW.match(low) is not None
