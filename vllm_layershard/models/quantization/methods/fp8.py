"""Reads a checkpoint of method fp8, with one scale a block or one a tensor."""

from __future__ import annotations

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.quantization.ignored import read_ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.uniform import uniform
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_MAX_BLOCK = 4096


def read_fp8(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method fp8.

    Source: vLLM 0.32, quantization/fp8.py, `Fp8Config.from_config`.

    Raises:
        ModelError: values that make no sense.
    """
    scheme = section.string("activation_scheme")
    if section.get("store_dtype") is not None:
        section.fail("store_dtype", f"{shown(section.get('store_dtype'))} is not supported yet")
    ignored = read_ignored(section, ("ignored_layers", "modules_to_not_convert"), "exact", names)
    if section.get("weight_block_size") is None:
        if scheme not in ("dynamic", "static"):
            section.fail("activation_scheme", f"{shown(scheme)} is neither 'dynamic' nor 'static'")
        static = scheme == "static"
        scaled = Scaled("fp8_tensor", "float8_e4m3fn", by_row=False, static=static)
        return uniform(scaled, ignored)
    if scheme != "dynamic":
        section.fail("activation_scheme", "fp8 blocks are supported with 'dynamic' only")
    block = Fp8Block(block=read_block(section, "weight_block_size"))
    return uniform(block, ignored)


def read_block(section: ConfigFile, key: str) -> tuple[int, int]:
    """Read rows and columns of a block.

    Raises:
        ModelError: not two whole numbers.
    """
    block = section.get(key)
    if not (
        isinstance(block, list)
        and len(block) == 2
        and all(
            isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= _MAX_BLOCK for n in block
        )
    ):
        section.fail(key, "is not a list of two whole numbers from 1 to 4,096")
    return block[0], block[1]
