"""Finds what a config says of a quantisation where vLLM reads none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

_KEY: Final = re.compile(
    r"quant|gptq|awq|bitsandbytes|bnb|torchao|hqq|modelopt|autoround|loadin[48]bit|"
    r"compressionconfig|compressedtensors|configgroups|weightblocksize|sparsity|"
    r"activationscheme|ignoredlayers|modulestonotconvert|descact|groupsize|zeropoint|packdtype|"
    r"qconfig|quark|aqlm|vptq|higgs|spqr|eetq|exl[23]|mlx|gguf|ggml|bitnet|fouroversix|marlin|ternary|"
    r"(nv|mx)?fp[468]|int[48]|w[n1-8]a(n|4|8|16)"
)
"""A part of a key that may state a quantisation, in small letters and digits."""

_WHOLE: Final = frozenset(
    {
        *("inc", "metal", "sinq", "humming", "ipex", "qat"),
        *("compressed", "compression", "compressor"),
    }
)
"""Keys that are names of methods, and parts of other words."""

_BITS: Final = re.compile(r"\w*(?<!pixel)bits?(width)?|\w*precision|\w*bitsper\w*|\w*bpw")
"""A key that counts the bits of a weight."""

_BYTES: Final = re.compile(r"bytesper(weight|param|element)\w*")
"""A key that counts its bytes."""

_FLAG: Final = re.compile(
    r"\w*(?<!\d)[1-8]bit|w[1-8]|palettized|weights?compressed|compressedweights?"
)
"""A key that says so by itself."""

_PIXELS: Final = frozenset({"bitsperchannel", "bitsperpixel", "bitspersample"})
"""Keys that count the bits of pictures and sound."""

_SAID: Final = re.compile(
    r"quant(?!um|i[tl])|(?<![a-z0-9])(q?((nv|mx|h|b)?(fp|float|u?int)|nf|hif|bf)[1-8](?!\d)|"
    r"awq|hqq|quark|aqlm|exl[23]|marlin|torchao|bnb|nvfp|mxfp|(int|fp|float)[-_ ][48](?!\d)|"
    r"w[1-8][-_]?a(fp)?([48](?!\d)|16)|a[48]w[48]|b?1\.58|[1-8][_-]?bit(?!s))|^tq[1-8]_|squeezellm|"
    r"gptq|gguf|ggml|modelopt|auto.?round|bitsandbytes|compressed.?tensors|llm.?compressor|"
    r"e[2-8]m[0-3](?!\d)|^i?q[1-8](_|$)|^[1-8][ _-]?bits?|quarot|ternary"
)
"""A word for a method, or for a format of at most eight bits, in small letters."""

_METHOD_NAMES: Final = frozenset(
    {
        *("bitblas", "bitnet", "eetq", "fbgemm", "fouroversix", "higgs", "humming", "inc", "metal"),
        *("mlx", "moe_wna16", "online", "palettized", "qtip", "quip", "rtn", "sinq", "spqr"),
        *("vptq", "binary", "experts_int8"),
    }
)
"""Names of methods that are words of other things, at a key that ends as `_METHOD_KEYS`."""

_METHOD_KEYS: Final = (
    *("method", "algo", "algorithm", "scheme", "compression", "format", "precision"),
)

_TYPED: Final = ("dtype", "dtypes", "precision", "weight", "weights", "encoding")
_LOW: Final = re.compile(r"(torch\.)?[a-z]{0,3}?(fp|float|int|[fisu])[1-8](\D|$)")
"""How a dtype of at most eight bits begins, which stands at a key that ends in `_TYPED`."""

_NAME: Final = re.compile(
    r"(^|model|repo|run|file|project|user)(name|id)$|(name|id)orpath$|(model|tokenizer)$"
)
"""A key under which a model, a file or a run is named."""

_HARMLESS: Final = frozenset({"numquantizers"})
"""Keys that name codebooks of sound."""


def statements(values: Any) -> Iterator[tuple[str, Any]]:
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
    if isinstance(value, (int, float)) and value is not True:
        if _BITS.fullmatch(plain):
            return plain not in _PIXELS and 0 < value < 16
        if _BYTES.fullmatch(plain):
            return 0 < value < 2
    if _FLAG.fullmatch(plain):
        return True
    return plain.removesuffix("config") in _WHOLE or _KEY.search(plain) is not None


def _says(plain: str, value: str) -> bool:
    """Whether a word at a key is one for a quantisation; models' names and paths are not sure."""
    cache = "cache" in plain and "weight" not in plain
    if cache or _NAME.search(plain) is not None or (plain.endswith("path") and "/" in value):
        return False
    low = unicodedata.normalize("NFKC", value).lower()
    if _SAID.search(low) is not None:
        return True
    if plain.endswith(_METHOD_KEYS) and low.replace("-", "_") in _METHOD_NAMES:
        return True
    return plain.endswith(_TYPED) and _LOW.match(low) is not None
