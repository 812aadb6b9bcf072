"""Read: the quantisation method that a config.json states. Fails closed."""

from __future__ import annotations

from vllm_layershard.models.config_file import ConfigFile
from vllm_layershard.models.quantization.method import Quantization
from vllm_layershard.models.quantization.none import Unquantized


def quantization_of(config: ConfigFile) -> Quantization:
    """Read `quantization_config`; only the module of its method is imported.

    Raises:
        ModelError: a method that is not supported yet, or values that make no sense.
    """
    section = config.section("quantization_config")
    if section is None:
        if config.get("compression_config") is not None:
            config.fail("compression_config", "this quantisation is not supported yet")
        return Unquantized()
    method = section.string("quant_method")
    if method == "compressed-tensors":
        from vllm_layershard.models.quantization.packed import read_packed

        return read_packed(section)
    if method == "mxfp4" and config.string("model_type") == "gpt_oss":
        from vllm_layershard.models.quantization.mxfp4 import Mxfp4

        return Mxfp4()
    if method != "fp8" or section.get("weight_block_size") is None:
        detail = " without weight_block_size" if method == "fp8" else ""
        config.fail(
            "quantization_config",
            f"quant_method {method!r}{detail} is not supported yet; supported are none, fp8 with "
            "weight_block_size, compressed-tensors as pack-quantized, and gpt-oss's mxfp4",
        )
    from vllm_layershard.models.quantization.fp8_block import read_fp8_block

    return read_fp8_block(section)
