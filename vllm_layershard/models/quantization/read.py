"""Read: the quantisation method that a config.json states. Fails closed."""

from __future__ import annotations

from vllm_layershard.models.config_file import ConfigFile
from vllm_layershard.models.quantization.fp8_block import read_fp8_block
from vllm_layershard.models.quantization.method import Quantization
from vllm_layershard.models.quantization.none import Unquantized


def quantization_of(config: ConfigFile) -> Quantization:
    """Read `quantization_config`.

    Raises:
        ModelError: a method that is not supported yet, or values that make no sense.
    """
    section = config.section("quantization_config")
    if section is None:
        if config.get("compression_config") is not None:
            config.fail("compression_config", "this quantisation is not supported yet")
        return Unquantized()
    method = section.string("quant_method")
    if method != "fp8" or section.get("weight_block_size") is None:
        config.fail(
            "quantization_config",
            f"quant_method {method!r}{'' if method != 'fp8' else ' without weight_block_size'} is "
            "not supported yet; supported are none and fp8 with weight_block_size",
        )
    return read_fp8_block(section)
