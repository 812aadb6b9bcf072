"""Which of vLLM's classes reads a checkpoint of Model Optimizer's, and whether it takes it.

Source: vLLM 0.32, quantization/modelopt.py: `LINEAR_ALGOS`, and of each config class
`override_quantization_method`, `from_config` and `_from_config`. A test asks the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm_layershard.models.sources.config_file import ConfigFile, shown

MIXED: Final = "modelopt_mixed"
"""The method whose class reads an algorithm of each layer, whatever stands beside them."""

_MXFP8: Final = ("modelopt_mxfp8", "mxfp8")
"""Methods of one class, which needs no algorithm."""

_OVERRIDES: Final[Mapping[str, str]] = {
    "FP8": "modelopt",
    "NVFP4": "modelopt_fp4",
    "W4A16_NVFP4": "modelopt_fp4",
    "MXFP8": "modelopt_mxfp8",
    "MIXED_PRECISION": MIXED,
}
"""Algorithm -> the method that vLLM takes for it, whichever of modelopt's is stated."""

_TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "modelopt": ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"),
    "modelopt_fp4": ("NVFP4", "W4A16_NVFP4"),
    **dict.fromkeys(_MXFP8, ("MXFP8",)),
}
"""Method -> the algorithms that its class takes."""

_CACHE_AND_REST: Final = ("kv_cache_quant_algo", "exclude_modules")
_NESTED: Final[Mapping[str, tuple[str, ...]]] = {
    "modelopt_fp4": ("group_size", *_CACHE_AND_REST),
    **dict.fromkeys(_MXFP8, _CACHE_AND_REST),
}
"""Method -> keys that its class wants in the older, nested form, if only as null."""


def takes_no_algorithm(section: ConfigFile) -> bool:
    """Whether it is read as MiniMax writes it: MXFP8, without saying so."""
    method = (section.string("quant_method") or "").lower()
    nested = "quantization" in section.values
    return method in _MXFP8 and not nested and not section.get("quant_algo")


def class_of(section: ConfigFile, values: ConfigFile, algorithm: str) -> str:
    """vLLM's method for an algorithm that it knows. `values` has it, in capitals, and its settings.

    Raises:
        ModelError: that method's class does not take it, or there is none.
    """
    stated = (section.string("quant_method") or "").lower()
    method = stated
    if stated.startswith("modelopt"):
        method = _OVERRIDES.get(algorithm, stated)
    if method != MIXED and algorithm not in _TAKES.get(method, ()):
        fitting = _OVERRIDES.get(algorithm, "modelopt")
        has = (
            f"takes {', '.join(_TAKES[method])} there"
            if method in _TAKES
            else "has no class of that name"
        )
        section.fail(
            "quant_method",
            f"{shown(section.get('quant_method'))} with quant_algo {algorithm}: vLLM 0.32 {has}; "
            f'state "{fitting}" if the weights are {algorithm}',
        )
    if values is not section:
        for key in _NESTED.get(method, ()):
            if key not in values.values:
                values.fail(
                    key,
                    f"is missing, and vLLM 0.32 reads no {algorithm} without it here; write it",
                )
    return method
