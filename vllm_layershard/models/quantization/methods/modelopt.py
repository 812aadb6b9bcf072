"""Reads what NVIDIA's Model Optimizer writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from vllm_layershard.models.quantization.by_layer import ByLayer, by_layer
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.quantization.formats.fp8_grid import Fp8Grid
from vllm_layershard.models.quantization.formats.microscaled import Microscaled
from vllm_layershard.models.quantization.formats.nvfp4 import Nvfp4
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.quantization.ignored import Ignored, read_ignored
from vllm_layershard.models.quantization.methods.modelopt_class import (
    MIXED,
    class_of,
    takes_no_algorithm,
)
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.uniform import uniform
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_FP8: Final = Scaled("modelopt_fp8", "float8_e4m3fn", by_row=False, static=True, biases="none")
_ROWS: Final = Scaled(
    "modelopt_fp8_channel", "float8_e4m3fn", by_row=True, static=False, column=False, routed=_FP8
)
_MIXED: Final = "MIXED_PRECISION"
_FORMATS: Final[Mapping[str, Callable[[int], Format]]] = {
    "FP8": lambda group: _FP8,
    "FP8_PER_CHANNEL_PER_TOKEN": lambda group: _ROWS,
    "FP8_PB_WO": lambda group: Fp8Grid("modelopt_fp8_block", _FP8),
    "NVFP4": lambda group: _nvfp4("modelopt_nvfp4", group, weight_only=False),
    "W4A16_NVFP4": lambda group: _nvfp4("modelopt_w4a16_nvfp4", group, weight_only=True),
    "MXFP8": lambda group: Microscaled("modelopt_mxfp8", 8),
}
"""Algorithm -> its format with groups of so many.
Source: vLLM 0.32, quantization/modelopt.py, `LINEAR_ALGOS` and `resolve`."""

_MAX_LAYERS: Final = 1 << 16
_MAX_DOTS: Final = 12
"""What lies within each part of a name is kept. nvidia/MiniMax-M3-NVFP4 has 22,422 names."""

_ROUTED_BLOCKS: Final = ("FP8_PB_WO", "FP8_BLOCK_SCALES")
_UNREAD: Final = ("IQ2_XS", "IQ2_XXS", "Q8_0")
"""Source: vLLM 0.32, utils/b12x.py, `B12X_BLOCK_CODECS`."""


def read_modelopt(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method modelopt, in the older nested form or the newer.

    Source: vLLM 0.32, quantization/modelopt.py, `ModelOptQuantConfigBase.from_config`.

    Raises:
        ModelError: an algorithm that the planner does not know, or values that make no sense.
    """
    if takes_no_algorithm(section):
        return read_mxfp8(section, names)
    inner = section.section("quantization")
    if inner is None and "quantization" in section.values:
        section.fail("quantization", "is null, and vLLM 0.32 reads the algorithm there")
    values, key = (section, "ignore") if inner is None else (inner, "exclude_modules")
    algorithm = (values.string("quant_algo") or "").upper()
    ignored = read_ignored(values, (key,), "wildcards", names)
    if algorithm not in (*_FORMATS, _MIXED):
        _refuse(values, "quant_algo", values.get("quant_algo"))
    if class_of(section, values, algorithm) == MIXED:
        return Quantization(MIXED, _by_layer(values, ignored, names))
    found = _FORMATS[algorithm](values.optional_integer("group_size", low=16, high=128) or 16)
    if algorithm == "NVFP4" and _weights_only(section):
        assert isinstance(found, Nvfp4), "as the table says"
        found = found._replace(weight_only=True)
    return uniform(found, ignored, quantises_head=True)


def read_mxfp8(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method mxfp8, as MiniMax writes it, or modelopt_mxfp8.

    Source: vLLM 0.32, quantization/modelopt.py, `ModelOptMxFp8Config.from_config`.

    Raises:
        ModelError: values that make no sense.
    """
    if not takes_no_algorithm(section):
        return read_modelopt(section, names)
    ignored = read_ignored(section, ("ignored_layers",), "wildcards", names)
    return uniform(Microscaled("mxfp8", 8), ignored, quantises_head=True)


def _nvfp4(name: str, group: int, *, weight_only: bool) -> Nvfp4:
    return Nvfp4(
        name=name,
        group=group,
        weight="weight",
        total="weight_scale_2",
        inputs="input_scale",
        weight_only=weight_only,
    )


def _weights_only(section: ConfigFile) -> bool:
    groups = section.section("config_groups")
    if groups is None or not groups.values:
        return False
    return all(
        isinstance(group, dict) and group.get("input_activations") is None
        for group in groups.values.values()
    )


def _by_layer(values: ConfigFile, ignored: Ignored, names: Names) -> ByLayer:
    """Source: vLLM 0.32, quantization/modelopt.py, `ModelOptMixedPrecisionConfig`."""
    layers = values.section("quantized_layers")
    if layers is None or not layers.values:
        values.fail("quantized_layers", f"is missing, and {_MIXED} states each layer's there")
    if len(layers.values) > _MAX_LAYERS or any(
        name.count(".") > _MAX_DOTS for name in layers.values
    ):
        values.fail(
            "quantized_layers",
            f"has more than {_MAX_LAYERS:,} names, or one of more than {_MAX_DOTS} dots",
        )
    algorithms: dict[str, str] = {}
    fours: list[int] = []
    blocks: set[int] = set()
    for name in layers.values:
        layer = layers.section(name)
        algorithm = (layer.string("quant_algo") or "").upper() if layer is not None else ""
        if layer is None or algorithm not in (*_FORMATS, *_ROUTED_BLOCKS):
            _refuse(layers, name, algorithm or None)
        if algorithm in _ROUTED_BLOCKS:
            blocks.add(layer.optional_integer("group_size", low=16, high=4096) or 128)
        elif "NVFP4" in algorithm:
            fours.append(layer.optional_integer("group_size", low=16, high=128) or 16)
        algorithms[names.of(name) if names.renames else name] = algorithm
    if len(blocks) > 1:
        layers.fail("group_size", "vLLM takes one size for the blocks of all fp8 experts")
    group = values.optional_integer("group_size", low=16, high=128) or next(iter(fours), 16)
    side = next(iter(blocks), 128)
    linears = {algorithm: make(group) for algorithm, make in _FORMATS.items()}
    experts: dict[str, Format] = {
        algorithm: linears[algorithm] for algorithm in ("FP8", "NVFP4", "W4A16_NVFP4", "MXFP8")
    } | dict.fromkeys(_ROUTED_BLOCKS, Fp8Block((side, side)))
    return by_layer(algorithms, linears, experts, names, ignored)


def _refuse(section: ConfigFile, key: str, algorithm: object) -> NoReturn:
    unread = str(algorithm).upper() in _UNREAD
    why = "has a class for it, and the planner does not read it yet" if unread else "has no class"
    if unread and key == "quant_algo":
        why = f"has a class for it of single layers alone, within {_MIXED}; give another checkpoint"
    known = ", ".join((*_FORMATS, _MIXED))
    said = f"{shown(algorithm)} is not supported: vLLM 0.32 {why}; supported are {known}"
    section.fail(key, said)
