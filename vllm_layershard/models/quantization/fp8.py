"""Reads a checkpoint of method fp8, with one scale a block or one a tensor."""

from __future__ import annotations

from vllm_layershard.models.quantization.fp8_block import Fp8Block, read_block
from vllm_layershard.models.quantization.ignored import read_ignored
from vllm_layershard.models.quantization.method import Quantization
from vllm_layershard.models.quantization.scaled import Scaled
from vllm_layershard.models.sources.config_file import ConfigFile, shown


def read_fp8(section: ConfigFile) -> Quantization:
    """Read a `quantization_config` of method fp8.

    Source: vLLM 0.32, quantization/fp8.py, `Fp8Config.from_config`.

    Raises:
        ModelError: values that make no sense.
    """
    scheme = section.string("activation_scheme")
    if section.get("store_dtype") is not None:
        section.fail("store_dtype", f"{shown(section.get('store_dtype'))} is not supported yet")
    ignored = read_ignored(section, ("ignored_layers", "modules_to_not_convert"), "exact")
    if section.get("weight_block_size") is None:
        if scheme not in ("dynamic", "static"):
            section.fail("activation_scheme", f"{shown(scheme)} is neither 'dynamic' nor 'static'")
        static = scheme == "static"
        return Scaled("fp8_tensor", "float8_e4m3fn", by_row=False, static=static, ignored=ignored)
    if scheme != "dynamic":
        section.fail("activation_scheme", "fp8 blocks are supported with 'dynamic' only")
    return Fp8Block(block=read_block(section, "weight_block_size"), ignored=ignored)
