"""Data types: which one a model runs in, and the size of an element of each."""

from __future__ import annotations

from typing import Final

from vllm_layershard.models.sources.config_file import ConfigFile

DTYPE_BYTES: Final[dict[str, int]] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float8_e4m3fn": 1,
    "uint8": 1,
    "int8": 1,
    "int32": 4,
    "int64": 8,
}
"""Bytes of one element, by torch's name without the module."""


_SPELLINGS: Final = {"half": "float16", "float": "float32", "double": "float64"}
"""Other names that torch has for a data type."""

_FALLEN_BACK: Final = ("float32", "float64")
"""Those that vLLM runs no model in with `--dtype auto`: it takes bfloat16."""


def dtype_of(config: ConfigFile) -> tuple[str, tuple[str, ...]]:
    """The run-time dtype that vLLM picks with `--dtype auto`, and what was assumed for it.

    Source: transformers 5, configuration_utils.py; vLLM 0.32, config/model.py,
    `_resolve_auto_dtype`.
    """
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    named = config.string(key)
    dtype = None if named is None else _SPELLINGS.get(named, named)
    if dtype in ("bfloat16", "float16"):
        return dtype, ()
    if dtype is not None and dtype not in _FALLEN_BACK:
        config.fail(key, f"{dtype!r} is not one of bfloat16, float16, float32")
    stated = "no dtype" if dtype is None else f"dtype {dtype}"
    note = f"config.json states {stated}: bfloat16 is assumed, as vLLM does with --dtype auto"
    return "bfloat16", (note,)
