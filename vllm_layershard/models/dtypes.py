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


def dtype_of(config: ConfigFile) -> tuple[str, tuple[str, ...]]:
    """The run-time dtype that vLLM picks with `--dtype auto`, and what was assumed for it."""
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    dtype = config.string(key)
    if dtype in ("bfloat16", "float16"):
        return dtype, ()
    if dtype not in (None, "float32"):
        config.fail(key, f"{dtype!r} is not one of bfloat16, float16, float32")
    stated = "no dtype" if dtype is None else "dtype float32"
    note = f"config.json states {stated}: bfloat16 is assumed, as vLLM does with --dtype auto"
    return "bfloat16", (note,)
