"""Reads what NVIDIA's Model Optimizer writes."""

from __future__ import annotations

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.nvfp4 import Nvfp4
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.quantization.ignored import read_ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.uniform import uniform
from vllm_layershard.models.sources.config_file import ConfigFile, shown


def read_modelopt(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method modelopt, in the older nested form or the newer.

    Source: vLLM 0.32, quantization/modelopt.py, `ModelOptQuantConfigBase.from_config`.

    Raises:
        ModelError: an algorithm that the planner does not know, or values that make no sense.
    """
    inner = section.section("quantization")
    values, key = (section, "ignore") if inner is None else (inner, "exclude_modules")
    algorithm = (values.string("quant_algo") or "").upper()
    ignored = read_ignored(values, (key,), "wildcards", names)
    if algorithm not in ("FP8", "NVFP4"):
        stated = shown(values.get("quant_algo"))
        values.fail("quant_algo", f"{stated} is not supported yet; supported are FP8 and NVFP4")
    if algorithm == "FP8":
        scaled = Scaled("modelopt_fp8", "float8_e4m3fn", by_row=False, static=True)
        return uniform(scaled, ignored, quantises_head=True)
    nvfp4 = Nvfp4(
        name="modelopt_nvfp4",
        group=values.optional_integer("group_size", low=16, high=128) or 16,
        weight="weight",
        total="weight_scale_2",
        inputs="input_scale",
        weight_only=_weights_only(section),
    )
    return uniform(nvfp4, ignored, quantises_head=True)


def _weights_only(section: ConfigFile) -> bool:
    groups = section.section("config_groups")
    if groups is None or not groups.values:
        return False
    return all(
        isinstance(group, dict) and group.get("input_activations") is None
        for group in groups.values.values()
    )
